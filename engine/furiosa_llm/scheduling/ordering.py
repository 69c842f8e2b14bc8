"""In which order waiting requests start."""

from __future__ import annotations

import heapq
from collections import deque
from typing import Protocol

from furiosa_llm.request import Request


class WaitingQueue(Protocol):
    """Waiting requests in the order in which they should start."""

    def __len__(self) -> int: ...

    def add(self, request: Request) -> None:
        """Adds a new request."""

    def put_back(self, request: Request) -> None:
        """Adds a preempted request, which starts again before any other."""

    def peek(self) -> Request:
        """Returns the request that should start next."""

    def pop(self) -> Request:
        """Takes it out."""


class FifoQueue:
    """First come, first served: someone may be waiting for each answer."""

    def __init__(self) -> None:
        self._requests: deque[Request] = deque()

    def __len__(self) -> int:
        return len(self._requests)

    def add(self, request: Request) -> None:
        """Adds a new request at the end."""
        self._requests.append(request)

    def put_back(self, request: Request) -> None:
        """Adds a preempted request at the front."""
        self._requests.appendleft(request)

    def peek(self) -> Request:
        """Returns the oldest request."""
        return self._requests[0]

    def pop(self) -> Request:
        """Takes the oldest request out."""
        return self._requests.popleft()


class LongestFirstQueue:
    """The request that may compute the most tokens first.

    No one waits for a single answer, and no long request is left to run alone at the end
    (longest processing time first, Graham 1969).
    """

    def __init__(self) -> None:
        self._put_back: deque[Request] = deque()
        self._requests: list[tuple[int, int, Request]] = []  # heap; ties by number

    def __len__(self) -> int:
        return len(self._put_back) + len(self._requests)

    def add(self, request: Request) -> None:
        """Adds a new request at the place of its length."""
        length = request.num_prompt_tokens + request.max_tokens
        heapq.heappush(self._requests, (-length, request.request_id, request))

    def put_back(self, request: Request) -> None:
        """Adds a preempted request, ahead of all others."""
        self._put_back.appendleft(request)

    def peek(self) -> Request:
        """Returns the longest request, or one that was put back."""
        return self._put_back[0] if self._put_back else self._requests[0][2]

    def pop(self) -> Request:
        """Takes that request out."""
        if self._put_back:
            return self._put_back.popleft()
        return heapq.heappop(self._requests)[2]
