"""In which order waiting requests start."""

from __future__ import annotations

import heapq
from collections import deque
from typing import Generic, Protocol, TypeVar


class Work(Protocol):
    """What waits: a request, or a prompt on its way to a replica."""

    @property
    def num_prompt_tokens(self) -> int:
        """Length of the prompt."""

    @property
    def max_tokens(self) -> int:
        """Longest answer."""


W = TypeVar("W", bound=Work)


class WaitingQueue(Protocol[W]):
    """Waiting requests in the order in which they should start."""

    def __len__(self) -> int: ...

    def add(self, request: W) -> None:
        """Adds a new request."""

    def put_back(self, request: W) -> None:
        """Adds a preempted request, which starts again before any other."""

    def peek(self) -> W:
        """Returns the request that should start next."""

    def pop(self) -> W:
        """Takes it out."""


class FifoQueue(Generic[W]):
    """First come, first served: someone may be waiting for each answer."""

    def __init__(self) -> None:
        self._requests: deque[W] = deque()

    def __len__(self) -> int:
        return len(self._requests)

    def add(self, request: W) -> None:
        """Adds a new request at the end."""
        self._requests.append(request)

    def put_back(self, request: W) -> None:
        """Adds a preempted request at the front."""
        self._requests.appendleft(request)

    def peek(self) -> W:
        """Returns the oldest request."""
        return self._requests[0]

    def pop(self) -> W:
        """Takes the oldest request out."""
        return self._requests.popleft()


class LongestFirstQueue(Generic[W]):
    """The request that may compute the most tokens first.

    No one waits for a single answer, and no long request is left to run alone at the end
    (longest processing time first, Graham 1969). Requests of equal length keep their order.
    """

    def __init__(self) -> None:
        self._put_back: deque[W] = deque()
        self._by_length: dict[int, deque[W]] = {}
        self._lengths: list[int] = []  # heap of those there are, negative: the longest first
        self._num_requests = 0

    def __len__(self) -> int:
        return len(self._put_back) + self._num_requests

    def add(self, request: W) -> None:
        """Adds a new request behind those of its length."""
        length = request.num_prompt_tokens + request.max_tokens
        if length not in self._by_length:
            self._by_length[length] = deque()
            heapq.heappush(self._lengths, -length)
        self._by_length[length].append(request)
        self._num_requests += 1

    def put_back(self, request: W) -> None:
        """Adds a preempted request, ahead of all others."""
        self._put_back.appendleft(request)

    def peek(self) -> W:
        """Returns the longest request, or one that was put back."""
        return self._put_back[0] if self._put_back else self._by_length[-self._lengths[0]][0]

    def pop(self) -> W:
        """Takes that request out."""
        if self._put_back:
            return self._put_back.popleft()
        length = -self._lengths[0]
        request = self._by_length[length].popleft()
        self._num_requests -= 1
        if not self._by_length[length]:
            del self._by_length[length]
            heapq.heappop(self._lengths)
        return request
