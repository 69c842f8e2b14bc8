"""Ctrl-C that waits until an engine is between two steps."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable
from types import FrameType, TracebackType

_TIMES_UNTIL_NOW = 2


class HeldInterrupt:
    """Keeps SIGINT from breaking off what it would leave half done.

    Use it as a context manager around the work and call `deliver` where the work may end. A
    second Ctrl-C does not wait. Outside the main thread, which no signal interrupts, and where
    SIGINT has no handler in Python, it does nothing.
    """

    def __init__(self) -> None:
        self._previous: Callable[[int, FrameType | None], object] | None = None
        self._num_held = 0

    def __enter__(self) -> HeldInterrupt:
        previous = signal.getsignal(signal.SIGINT)
        if callable(previous) and threading.current_thread() is threading.main_thread():
            self._previous = previous
            signal.signal(signal.SIGINT, self._hold)
        return self

    def __exit__(
        self,
        error_type: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._previous is not None:
            signal.signal(signal.SIGINT, self._previous)
        if error_type is None:
            self.deliver()

    def deliver(self) -> None:
        """Does now what a Ctrl-C since the last call asked for: raises KeyboardInterrupt."""
        if self._num_held:
            self._num_held = 0
            self._call(None)

    def _hold(self, _: int, frame: FrameType | None) -> None:
        self._num_held += 1
        if self._num_held >= _TIMES_UNTIL_NOW:
            self._call(frame)

    def _call(self, frame: FrameType | None) -> None:
        if self._previous is not None:
            self._previous(signal.SIGINT, frame)
