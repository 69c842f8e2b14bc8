"""How much memory a process and all that it started hold together."""

from __future__ import annotations

import threading
from pathlib import Path
from types import TracebackType

_PROC = Path("/proc")


def tree_memory_bytes(pid: int) -> int:
    """Returns the proportional set size of a process and its descendants.

    A page that several processes share counts once, in parts.
    """
    parents = _parents()
    total, found = 0, [pid]
    for process in found:
        found += [child for child, parent in parents.items() if parent == process]
        total += _memory_bytes(process)
    return total


class PeakMemory:
    """Watches a process tree while the context is open."""

    def __init__(self, pid: int, *, interval_seconds: float = 0.5) -> None:
        """Prepares to watch the process and what it starts."""
        self.peak_bytes = 0
        self._pid = pid
        self._interval_seconds = interval_seconds
        self._is_over = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> PeakMemory:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._is_over.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._is_over.wait(self._interval_seconds):
            self.peak_bytes = max(self.peak_bytes, tree_memory_bytes(self._pid))


def _parents() -> dict[int, int]:
    parents = {}
    for folder in _PROC.glob("[0-9]*"):
        try:
            # The name before the last parenthesis may hold blanks.
            fields = (folder / "stat").read_text().rpartition(")")[2].split()
        except OSError:
            continue  # it has just ended
        parents[int(folder.name)] = int(fields[1])
    return parents


def _memory_bytes(pid: int) -> int:
    try:
        lines = (_PROC / str(pid) / "smaps_rollup").read_text().splitlines()
    except OSError:
        return 0
    return sum(int(line.split()[1]) * 1024 for line in lines if line.startswith("Pss:"))
