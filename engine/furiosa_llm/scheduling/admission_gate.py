"""Lets requests start in groups, so that more steps read no prompt."""

from __future__ import annotations

GROUP_SHARE = 1 / 16  # of the requests that run


class AdmissionGate:
    """Closed from when no further request can run until a share of those that run have ended.

    Where each request that ends is followed by another at once, hardly any step is of decodes
    alone, which a GPU replays as a graph. It costs half the share, of the requests that could run.
    """

    def __init__(self, share: float = 0.0) -> None:
        """Starts open.

        Args:
            share: Of the requests that run; with 0, each that ends makes room for another.
        """
        self._share = share
        self._num_to_end = 0

    def is_open(self, *, num_running: int) -> bool:
        """Whether requests may start."""
        return self._num_to_end <= 0 or not num_running

    def close(self, *, num_running: int) -> None:
        """Takes note that requests wait, and none of them can start."""
        self._num_to_end = int(self._share * num_running)

    def note_end(self) -> None:
        """Takes note of a request that ran and has ended."""
        self._num_to_end -= 1
