"""Keeps two runs from writing the same output. A run that died holds no lock."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

LOCK_NAME = "lock"


class RunLock:
    """A lock on a folder, held from `acquire` until `release` or the end of the process.

    Processes that this one starts do not inherit it, so that none of them holds it longer.
    """

    def __init__(self, folder: Path) -> None:
        self._path = folder / LOCK_NAME
        self._descriptor: int | None = None

    @property
    def is_held(self) -> bool:
        """Whether this run holds it."""
        return self._descriptor is not None

    def acquire(self) -> None:
        """Takes the lock; makes the folder if it is not there.

        Raises:
            BlockingIOError: A living run holds it.
            OSError: The folder or its lock cannot be made.
        """
        while self._descriptor is None:
            self._path.parent.mkdir(exist_ok=True)
            try:
                descriptor = os.open(self._path, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o666)
            except FileNotFoundError:
                continue  # the run before has just removed the folder
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if _is_at(self._path, descriptor):
                    self._descriptor = descriptor
            finally:
                if self._descriptor is None:
                    os.close(descriptor)

    def release(self) -> None:
        """Gives the lock back, if it is held."""
        if self._descriptor is not None:
            # While it is still held: whoever has opened it sees then that it is not there.
            self._path.unlink(missing_ok=True)
            os.close(self._descriptor)
            self._descriptor = None


def is_locked(folder: Path) -> bool:
    """Tells whether a living run holds the lock of a folder."""
    try:
        descriptor = os.open(folder / LOCK_NAME, os.O_RDWR | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return True
    finally:
        os.close(descriptor)
    return False


def _is_at(path: Path, descriptor: int) -> bool:
    """Whether a path still leads to an open file: the run before may have removed it."""
    try:
        return os.path.samestat(path.stat(), os.fstat(descriptor))
    except FileNotFoundError:
        return False
