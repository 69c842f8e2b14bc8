"""Decides which replica answers which prompt. It knows nothing of processes."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from furiosa_llm.replicas.prefix_owners import PrefixOwners
from furiosa_llm.request import TokenizedPrompt
from furiosa_llm.scheduling.ordering import FifoQueue, LongestFirstQueue, WaitingQueue

WINDOW = 64  # waiting prompts among which a replica finds one whose prefix it has


@dataclass(slots=True)
class _Replica:
    """What the dispatcher knows of a replica."""

    assigned: dict[str, TokenizedPrompt] = field(default_factory=dict)
    unreported_tokens: deque[int] = field(default_factory=deque)  # of prompts on their way
    num_waiting_tokens: int = 0  # as it reported last
    num_received: int = 0  # likewise
    work_left: int = 0  # tokens that its prompts and answers have at most
    is_alive: bool = True

    @property
    def num_waiting_prompt_tokens(self) -> int:
        """Tokens of the prompts that it has not started, those on their way among them."""
        return self.num_waiting_tokens + sum(self.unreported_tokens)


class Dispatcher:
    """The prompts that wait, and those that each replica works on.

    Prompts are pulled: a replica gets another when those that it has not started fill less than
    two of its steps, so that one which finishes early gets more. Among such replicas the one with
    the least work left, in tokens, comes first. It takes the next prompt whose prefix it has or
    nobody has, and one of another replica's prefix only where computing the prefix again costs
    less than waiting.

    Prompts that a dead replica held are suspects. A replica first holds one of them at a time,
    beside prompts that are none, so that a second death tells which of them it was. Each that is
    answered lets twice as many be tried together; when a replica dies of several, they are tried
    one by one.
    """

    def __init__(
        self,
        num_replicas: int,
        *,
        low_water_tokens: int,
        is_offline: bool,
        prefix_block_size: int | None = None,
    ) -> None:
        """Starts with nothing to do.

        Args:
            num_replicas: All alive.
            low_water_tokens: A replica pulls while it has fewer prompt tokens waiting.
            is_offline: Longest first, else first come, first served.
            prefix_block_size: Tokens of the blocks that prompts can share; None for no sharing.
        """
        self._replicas = [_Replica() for _ in range(num_replicas)]
        self._low_water_tokens = low_water_tokens
        self._queue: WaitingQueue[TokenizedPrompt] = (
            LongestFirstQueue() if is_offline else FifoQueue()
        )
        # The first ones of the queue, with the hashes of their prefixes.
        self._window: list[tuple[TokenizedPrompt, tuple[bytes, ...]]] = []
        self._suspects: deque[TokenizedPrompt] = deque()
        self._max_suspects = 1  # in a replica at a time
        self._alone: deque[TokenizedPrompt] = deque()  # suspects of a second death
        self._num_deaths: dict[str, int] = {}  # of replicas that held a prompt, for suspects
        self._aborted: set[str] = set()  # in the queue
        self._queued_ids: set[str] = set()
        self._queued_tokens = 0
        self._owners = PrefixOwners(prefix_block_size)

    def is_alive(self, replica: int) -> bool:
        """Tells whether a replica works."""
        return self._replicas[replica].is_alive

    def add(self, prompt: TokenizedPrompt) -> None:
        """Takes a prompt in."""
        self._queue.add(prompt)
        self._queued_ids.add(prompt.request_id)
        self._queued_tokens += _work(prompt)

    def abort(self, request_ids: Iterable[str]) -> dict[int, tuple[str, ...]]:
        """Forgets prompts. Returns those that replicas have to be told of, by replica."""
        names = set(request_ids)
        self._aborted |= names & self._queued_ids
        told = {}
        for index, replica in enumerate(self._replicas):
            held = tuple(name for name in names if name in replica.assigned)
            for name in held:
                self._forget(replica, name)
            if held:
                told[index] = held
        return told

    def assignments(self) -> Iterator[tuple[int, TokenizedPrompt]]:
        """Yields prompts with the replicas that they go to, as long as a replica pulls."""
        while True:
            hungry = sorted(
                (replica.work_left, index)
                for index, replica in enumerate(self._replicas)
                if replica.is_alive and replica.num_waiting_prompt_tokens < self._low_water_tokens
            )
            for _, index in hungry:
                prompt = self._next_for(index)
                if prompt is not None:
                    self._assign(index, prompt)
                    yield index, prompt
                    break
            else:
                return

    def prompt(self, replica: int, request_id: str) -> TokenizedPrompt | None:
        """Returns a prompt that the replica works on; None if it has been given up meanwhile."""
        return self._replicas[replica].assigned.get(request_id)

    def finished(self, replica: int, request_id: str) -> None:
        """Books that an answer is complete."""
        self._forget(self._replicas[replica], request_id)

    def reported(self, replica: int, *, num_received: int, num_waiting_tokens: int) -> None:
        """Books what a replica says of the prompts that it was given."""
        state = self._replicas[replica]
        for _ in range(num_received - state.num_received):
            state.unreported_tokens.popleft()
        state.num_received = num_received
        state.num_waiting_tokens = num_waiting_tokens

    def died(self, replica: int) -> list[TokenizedPrompt]:
        """Takes back a dead replica's prompts. Returns those that are not tried again."""
        state = self._replicas[replica]
        is_proved = self._num_suspects(state) == 1
        self._replicas[replica] = _Replica(is_alive=False)
        self._owners.forget(replica)
        self._max_suspects = 1
        given_up = []
        for prompt in state.assigned.values():
            is_suspect = prompt.request_id in self._num_deaths
            if is_suspect and is_proved:
                given_up.append(prompt)
                del self._num_deaths[prompt.request_id]
                continue
            self._num_deaths[prompt.request_id] = self._num_deaths.get(prompt.request_id, 0) + 1
            (self._alone if is_suspect else self._suspects).append(prompt)
            self._queued_ids.add(prompt.request_id)
            self._queued_tokens += _work(prompt)
        return given_up

    def restarted(self, replica: int) -> None:
        """Books that a dead replica works again."""
        self._replicas[replica] = _Replica()

    def _next_for(self, index: int) -> TokenizedPrompt | None:
        while (suspects := self._suspects_for(index)) is not None:
            prompt = suspects.popleft()
            if self._take(prompt):
                return prompt
        self._fill_window()
        while (place := self._place_in_window(index)) is not None:
            prompt, _ = self._window.pop(place)
            if self._take(prompt):
                return prompt
        return None

    def _place_in_window(self, index: int) -> int | None:
        """Returns the first waiting prompt that costs this replica no more than another.

        If there is none: the one that costs least, as long as another replica would take longer
        to come to it, or there is enough to do for all.
        """
        cheapest, least = None, 0
        for place, (_, digests) in enumerate(self._window):
            extra = self._owners.extra_tokens(digests, index)
            if extra == 0:
                return place
            if cheapest is None or extra < least:
                cheapest, least = place, extra
        busiest = max(replica.work_left for replica in self._replicas)
        is_plenty = self._queued_tokens > self._low_water_tokens * len(self._replicas)
        if is_plenty or self._replicas[index].work_left + least < busiest:
            return cheapest
        return None

    def _fill_window(self) -> None:
        while len(self._window) < WINDOW and len(self._queue):
            prompt = self._queue.pop()
            if prompt.request_id in self._aborted:
                self._take(prompt)
            else:
                self._window.append((prompt, self._owners.digests(prompt.token_ids)))

    def _take(self, prompt: TokenizedPrompt) -> bool:
        """Books that a prompt waits no more. Returns False if it has been given up meanwhile."""
        self._queued_ids.discard(prompt.request_id)
        self._queued_tokens -= _work(prompt)
        if prompt.request_id in self._aborted:
            self._aborted.discard(prompt.request_id)
            self._num_deaths.pop(prompt.request_id, None)
            return False
        return True

    def _assign(self, index: int, prompt: TokenizedPrompt) -> None:
        replica = self._replicas[index]
        replica.assigned[prompt.request_id] = prompt
        replica.unreported_tokens.append(prompt.num_prompt_tokens)
        replica.work_left += _work(prompt)
        self._owners.add(self._owners.digests(prompt.token_ids), index)

    def _suspects_for(self, index: int) -> deque[TokenizedPrompt] | None:
        """Returns the suspects of which the replica may take the next; None if it may not."""
        assigned = self._replicas[index].assigned
        held = [deaths for name, deaths in self._num_deaths.items() if name in assigned]
        if self._alone or max(held, default=0) > 1:
            return self._alone if self._alone and not held else None
        return self._suspects if self._suspects and len(held) < self._max_suspects else None

    def _num_suspects(self, replica: _Replica) -> int:
        return sum(name in replica.assigned for name in self._num_deaths)

    def _forget(self, replica: _Replica, request_id: str) -> None:
        replica.work_left -= _work(replica.assigned.pop(request_id))
        if self._num_deaths.pop(request_id, None) is not None:
            self._max_suspects *= 2


def low_water_tokens(max_num_batched_tokens: int) -> int:
    """Returns how many prompt tokens a replica should have waiting: enough for two steps."""
    return 2 * max_num_batched_tokens


def _work(prompt: TokenizedPrompt) -> int:
    return prompt.num_prompt_tokens + prompt.max_tokens
