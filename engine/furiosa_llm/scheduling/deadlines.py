"""Until when requests have to be answered."""

from __future__ import annotations

import heapq

from furiosa_llm.request import Request


class Deadlines:
    """The requests that have started and may take only so long."""

    def __init__(self) -> None:
        self._soonest_first: list[tuple[float, int, Request]] = []

    def add(self, request: Request, *, now: float) -> None:
        """Takes note of a request that starts for the first time."""
        if request.timeout_seconds is not None:
            entry = (now + request.timeout_seconds, request.request_id, request)
            heapq.heappush(self._soonest_first, entry)

    def take_overdue(self, *, now: float) -> list[Request]:
        """Returns the unfinished requests whose time is over, each once."""
        overdue = []
        while self._soonest_first and self._soonest_first[0][0] <= now:
            _, _, request = heapq.heappop(self._soonest_first)
            if not request.is_finished:
                overdue.append(request)
        return overdue
