"""Threads that share one operation out among the cores of a process."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor


class CoreThreads:
    """So many threads, of which the caller is one. They are started by the first use."""

    def __init__(self, num_threads: int) -> None:
        self.num_threads = num_threads
        self._helpers: ThreadPoolExecutor | None = None

    def share(self, work: Callable[[int, int], None], num_units: int) -> None:
        """Calls work(i, n) in n threads at once, i from 0 to n - 1, and waits for all.

        `work` must let other threads run, as compiled code may. n is at most `num_units`.
        """
        num_shares = min(self.num_threads, num_units)
        if num_shares <= 1:
            work(0, 1)
            return
        if self._helpers is None:
            self._helpers = ThreadPoolExecutor(self.num_threads - 1, "core")
        helping = [self._helpers.submit(work, i, num_shares) for i in range(1, num_shares)]
        work(0, num_shares)
        for future in helping:
            future.result()
