"""Signals that wait until an engine is between two steps."""

from __future__ import annotations

import math
import signal
import threading
import time
from collections.abc import Callable
from types import FrameType, TracebackType

_TIMES_UNTIL_NOW = 2
_STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


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


class GracefulStop:
    """Lets a run end early in good order: on a signal, or when its time is over.

    Use it as a context manager around the work, and ask it between steps. After the first signal
    the work that has begun may be finished until `is_over`; a second signal is not held back.
    Outside the main thread, and for signals that are ignored, it does nothing.
    """

    def __init__(
        self,
        *,
        grace_seconds: float,
        deadline: float | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Sets the times.

        Args:
            grace_seconds: How long what has begun may go on after a stop was asked for.
            deadline: When all has to be over, by `clock`; then the grace time ends, too.
            clock: In seconds.
        """
        self._grace_seconds = grace_seconds
        self._clock = clock
        self._reason: str | None = None
        self._end = 0.0
        self._deadline = math.inf if deadline is None else deadline
        self._previous: dict[signal.Signals, Callable[[int, FrameType | None], object]] = {}

    def __enter__(self) -> GracefulStop:
        if threading.current_thread() is threading.main_thread():
            for number in _STOP_SIGNALS:
                previous = signal.getsignal(number)
                if callable(previous):
                    self._previous[number] = previous
                    signal.signal(number, self._hold)
        return self

    def __exit__(self, *_: object) -> None:
        for number, previous in self._previous.items():
            signal.signal(number, previous)
        self._previous.clear()

    @property
    def reason(self) -> str | None:
        """Why the work has to stop; None as long as it may go on."""
        if self._reason is None and self._clock() >= self._deadline - self._grace_seconds:
            self._reason, self._end = "the deadline", self._deadline
        return self._reason

    @property
    def seconds_left(self) -> float:
        """How long what has begun may still go on, once there is a reason to stop."""
        return max(self._end - self._clock(), 0.0)

    def _hold(self, number: int, frame: FrameType | None) -> None:
        if self._reason is not None:
            self._previous[signal.Signals(number)](number, frame)
            return
        self._end = min(self._clock() + self._grace_seconds, self._deadline)
        self._reason = signal.Signals(number).name
