"""What runs under a process, as /proc tells it."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path


def children(pid: int) -> list[int]:
    """The processes that a process started and that still run, oldest first."""
    return sorted(child for child, parent in _parents() if parent == pid)


def descendants(pid: int) -> list[int]:
    """Its children, theirs, and so on."""
    found = children(pid)
    for child in found:
        found += children(child)
    return found


def is_running(pid: int) -> bool:
    """Whether it is there and not only waiting for its parent to notice its end."""
    try:
        return _state(pid) != "Z"
    except OSError:
        return False


def wait_until(holds: Callable[[], bool], *, seconds: float = 20.0) -> bool:
    """Waits until something holds; False if it does not in time."""
    end = time.monotonic() + seconds
    while not holds():
        if time.monotonic() > end:
            return False
        time.sleep(0.02)
    return True


def _parents() -> list[tuple[int, int]]:
    parents = []
    for path in Path("/proc").glob("[0-9]*"):
        try:
            parents.append((int(path.name), int(_fields(int(path.name))[1])))
        except OSError:
            continue  # it has just ended
    return parents


def _state(pid: int) -> str:
    return _fields(pid)[0]


def _fields(pid: int) -> list[str]:
    """State, parent and what follows: all after the name, which may hold blanks."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
