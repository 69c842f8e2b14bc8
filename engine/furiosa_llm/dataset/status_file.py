"""Tells a watcher how far a run has come, in a small file beside the output."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from furiosa_llm.dataset.manifest import utc_now
from furiosa_llm.errors import RunStoppedError

_INTERVAL_SECONDS = 1.0

_logger = logging.getLogger(__name__)


class StatusFile:
    """A file of JSON that always holds one whole state.

    A run that died leaves it as it was, with the number of a process that is gone.
    """

    def __init__(self, path: Path, *, clock: Callable[[], float]) -> None:
        self._path = path
        self._clock = clock
        self._started_at = utc_now()
        self._state = ""
        self._values: Callable[[], Mapping[str, object]] = dict
        self._next_at = 0.0
        self._has_failed = False

    @classmethod
    @contextlib.contextmanager
    def open(
        cls, path: Path, *, clock: Callable[[], float] = time.monotonic
    ) -> Iterator[StatusFile]:
        """Tells of a block of work.

        When it ends well, the output is there and the file goes; else the file stays and says how
        the run ended, and how far it had come then. Nothing is written before the first update.
        """
        status = cls(path, clock=clock)
        try:
            yield status
        except BaseException as error:
            if not status._state:
                raise
            is_stop = isinstance(error, RunStoppedError | KeyboardInterrupt)
            reason = str(error) or type(error).__name__
            state = "stopped" if is_stop else "failed"
            status._write(state, {**status._values(), "reason": reason})
            raise
        with contextlib.suppress(OSError):
            path.unlink(missing_ok=True)

    def update(self, state: str, values: Callable[[], Mapping[str, object]]) -> None:
        """Writes what there is to tell if the state is a new one, else once a second.

        Args:
            state: What the run does.
            values: Returns what there is to tell, also at the end.
        """
        self._values = values
        now = self._clock()
        if state == self._state and now < self._next_at:
            return
        self._state, self._next_at = state, now + _INTERVAL_SECONDS
        self._write(state, values())

    def _write(self, state: str, values: Mapping[str, object]) -> None:
        content = {
            "state": state,
            **values,
            "pid": os.getpid(),
            "started_at": self._started_at,
            "updated_at": utc_now(),
        }
        temporary = self._path.with_name(self._path.name + ".tmp")
        try:
            temporary.write_text(json.dumps(content) + "\n", encoding="utf-8")
            temporary.replace(self._path)
        except OSError as error:
            # A run does not end because no one can watch it.
            if not self._has_failed:
                _logger.warning("%s cannot be written: %s", self._path, error)
            self._has_failed = True
