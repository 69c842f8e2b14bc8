"""In which order waiting requests start."""

from __future__ import annotations

from array import array
from bisect import bisect_left, bisect_right, insort_left
from collections import deque
from collections.abc import Callable, Sequence
from typing import Generic, Protocol, TypeVar


class Work(Protocol):
    """What waits: a request, or a prompt on its way to a replica."""

    @property
    def prompt_token_ids(self) -> Sequence[int]:
        """The prompt."""

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

    def first(self) -> W:
        """Returns the request that should start next. There is one."""

    def similar(self, token_ids: Sequence[int], num_tokens: int) -> W | None:
        """Returns one that may start ahead of its turn, for its prompt starts like these tokens.

        It shares `num_tokens` of them at least, and no other shares more.
        """

    def largest(self, fits: Callable[[W], bool]) -> W | None:
        """Returns one that may start ahead of its turn, for the first does not fit."""

    def remove(self, request: W) -> None:
        """Takes out a request that one of the others has just returned."""


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

    def first(self) -> W:
        """Returns the oldest request."""
        return self._requests[0]

    def similar(self, token_ids: Sequence[int], num_tokens: int) -> W | None:  # noqa: ARG002
        """Returns nothing: each waits for its turn."""
        return None

    def largest(self, fits: Callable[[W], bool]) -> W | None:  # noqa: ARG002
        """Returns nothing: each waits for its turn."""
        return None

    def remove(self, request: W) -> None:
        """Takes the oldest request out."""
        assert request is self._requests[0]
        self._requests.popleft()


class OfflineQueue(Generic[W]):
    """The request that may compute the most tokens first.

    No one waits for a single answer, and no long request is left to run alone at the end
    (longest processing time first, Graham 1969). Ahead of their turn come requests whose prompts
    start like that of the last one, while the cache still holds it, and, where the blocks do not
    suffice for the first, the largest for which they do.

    Two sorted lists hold the requests, by length and by prompt: 16 bytes for each of many.
    """

    def __init__(self) -> None:
        self._put_back: deque[W] = deque()
        self._by_length: list[W] = []  # ascending; of equal ones the oldest last
        self._by_prompt: list[W] = []  # in the order of their tokens; likewise

    def __len__(self) -> int:
        return len(self._put_back) + len(self._by_length)

    def add(self, request: W) -> None:
        """Adds a new request."""
        insort_left(self._by_length, request, key=_length)
        insort_left(self._by_prompt, request, key=_prompt)

    def put_back(self, request: W) -> None:
        """Adds a preempted request, ahead of all others."""
        self._put_back.appendleft(request)

    def first(self) -> W:
        """Returns the longest request, or one that was put back."""
        return self._put_back[0] if self._put_back else self._by_length[-1]

    def similar(self, token_ids: Sequence[int], num_tokens: int) -> W | None:
        """Returns the request whose prompt shares the most leading tokens with these."""
        if self._put_back:
            return None
        place = bisect_left(self._by_prompt, (array("i", token_ids), 0), key=_prompt)
        neighbours = self._by_prompt[max(place - 1, 0) : place + 1]
        best, num_shared = None, num_tokens - 1
        for neighbour in neighbours:
            num_common = _num_common(neighbour.prompt_token_ids, token_ids)
            if num_common > num_shared:
                best, num_shared = neighbour, num_common
        return best and self._by_prompt[_place_of(best, self._by_prompt, _prompt)]

    def largest(self, fits: Callable[[W], bool]) -> W | None:
        """Returns the longest request that fits, by bisection: what is shorter is taken to fit."""
        if self._put_back:
            return None
        place = bisect_left(self._by_length, True, key=lambda request: not fits(request)) - 1
        if place < 0:
            return None
        return self._by_length[_place_of(self._by_length[place], self._by_length, _length)]

    def remove(self, request: W) -> None:
        """Takes out a request that has just been returned."""
        if self._put_back:
            assert request is self._put_back[0]
            self._put_back.popleft()
            return
        for requests, key in ((self._by_length, _length), (self._by_prompt, _prompt)):
            place = _place_of(request, requests, key)
            assert requests[place] is request
            del requests[place]


def _length(request: Work) -> tuple[int, array[int]]:
    return request.num_prompt_tokens + request.max_tokens, _packed(request.prompt_token_ids)


def _prompt(request: Work) -> tuple[array[int], int]:
    return _packed(request.prompt_token_ids), request.num_prompt_tokens + request.max_tokens


def _packed(token_ids: Sequence[int]) -> array[int]:
    """Returns the tokens as an array, which is compared fast."""
    return token_ids if isinstance(token_ids, array) else array("i", token_ids)


def _place_of(request: W, requests: list[W], key: Callable[[W], tuple[object, ...]]) -> int:
    """Returns the place of the request, or of its oldest twin: both lists have the same last."""
    return bisect_right(requests, key(request), key=key) - 1


def _num_common(one: Sequence[int], other: Sequence[int]) -> int:
    """Returns how many leading tokens are the same."""
    pairs = zip(one, other, strict=False)
    return next((i for i, (a, b) in enumerate(pairs) if a != b), min(len(one), len(other)))
