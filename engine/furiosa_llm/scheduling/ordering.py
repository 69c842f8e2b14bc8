"""In which order waiting requests start."""

from __future__ import annotations

import heapq
import itertools
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


class OfflineQueue:
    """Shared prefixes together, the longest work first.

    Requests whose first `prefix_length` tokens agree form a group and start one after another,
    while the blocks of their prefix are in the cache. Among groups, and within one, the request
    that may compute the most tokens starts first, so that no long one is left to run alone at
    the end (longest processing time first, Graham 1969).
    """

    def __init__(self, prefix_length: int) -> None:
        self._prefix_length = prefix_length
        self._put_back: deque[Request] = deque()
        self._groups: dict[int, list[tuple[int, int, Request]]] = {}  # by hash of the prefix
        self._leaders: list[tuple[int, int, int]] = []  # heap: the longest of each group
        self._current: int | None = None
        self._arrivals = itertools.count()  # breaks ties by arrival
        self._num_requests = 0

    def __len__(self) -> int:
        return self._num_requests

    def add(self, request: Request) -> None:
        """Adds a new request to the group of its prefix."""
        key = hash(tuple(request.prompt_token_ids[: self._prefix_length]))
        group = self._groups.setdefault(key, [])
        rank = (-(request.num_prompt_tokens + request.max_tokens), next(self._arrivals))
        if not group or rank < group[0][:2]:
            heapq.heappush(self._leaders, (*rank, key))
        heapq.heappush(group, (*rank, request))
        self._num_requests += 1

    def put_back(self, request: Request) -> None:
        """Adds a preempted request, ahead of all groups."""
        self._put_back.appendleft(request)
        self._num_requests += 1

    def peek(self) -> Request:
        """Returns the longest request of the current group."""
        if self._put_back:
            return self._put_back[0]
        return self._current_group()[0][2]

    def pop(self) -> Request:
        """Takes that request out."""
        self._num_requests -= 1
        if self._put_back:
            return self._put_back.popleft()
        group = self._current_group()
        request = heapq.heappop(group)[2]
        if not group:
            assert self._current is not None
            del self._groups[self._current]
            self._current = None
        return request

    def _current_group(self) -> list[tuple[int, int, Request]]:
        while self._current is None:
            *rank, key = heapq.heappop(self._leaders)
            group = self._groups.get(key)
            if group and list(group[0][:2]) == rank:  # else the leader has started already
                self._current = key
        return self._groups[self._current]
