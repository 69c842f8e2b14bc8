"""Decides which replica answers which prompt. It knows nothing of processes."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field

from furiosa_llm.replicas.prefix_owners import PrefixOwners
from furiosa_llm.request import TokenizedPrompt
from furiosa_llm.scheduling.ordering import WaitingQueue

_DOUBLE_WORK_TOKENS = 2048  # as on a CPU with a model of 135 million parameters
WINDOW = 64  # waiting prompts among which a replica finds one whose prefix it has


def most_work(prompt: TokenizedPrompt) -> int:
    """Returns the work that a prompt and its answer are at most, in tokens without a past.

    A token that looks back on `_DOUBLE_WORK_TOKENS` costs twice as much.
    """
    num_tokens = prompt.num_prompt_tokens + prompt.max_tokens
    return num_tokens + num_tokens**2 // (2 * _DOUBLE_WORK_TOKENS)


_Entry = tuple[TokenizedPrompt, tuple[bytes, ...]]  # with the hashes of its prefixes


@dataclass(slots=True)
class _Replica:
    """What the dispatcher knows of a replica."""

    assigned: dict[str, TokenizedPrompt] = field(default_factory=dict)
    unreported_tokens: deque[int] = field(default_factory=deque)  # of prompts on their way
    num_waiting_tokens: int = 0  # as it reported last
    num_received: int = 0  # likewise
    work_left: int = 0  # of its prompts
    last_prompt: Sequence[int] = ()  # that it was given
    is_alive: bool = True

    @property
    def num_waiting_prompt_tokens(self) -> int:
        """Tokens of the prompts that it has not started, those on their way among them."""
        return self.num_waiting_tokens + sum(self.unreported_tokens)


class Dispatcher:
    """The prompts that wait, and those that each replica works on.

    Prompts are pulled: a replica gets another when those that it has not started fill less than
    two of its steps, so that one which finishes early gets more. Among such replicas the one with
    the least work left comes first, and one that has its share of all the work that is left gets
    none, unless those with less want none of what waits. It takes a prompt of which it has
    computed most, the first in turn among equals, and one of another replica's prefix only where
    computing the prefix again costs less than waiting.

    Prompts that a dead replica held are suspects. A replica first holds one of them at a time,
    beside prompts that are none. Each that is answered lets twice as many be tried together. One
    that was there at a second death is tried with nothing beside it: only a replica that dies of
    it then proves that it was this prompt.
    """

    def __init__(
        self,
        num_replicas: int,
        *,
        low_water_tokens: int,
        queue: WaitingQueue[TokenizedPrompt],
        weigh: Callable[[TokenizedPrompt], int] = most_work,
        prefix_block_size: int | None = None,
    ) -> None:
        """Starts with nothing to do.

        Args:
            num_replicas: All alive.
            low_water_tokens: A replica pulls while it has fewer prompt tokens waiting.
            queue: Empty; the order in which prompts go to replicas.
            weigh: The work of a prompt.
            prefix_block_size: Tokens of the blocks that prompts can share; None for no sharing.
        """
        self._replicas = [_Replica() for _ in range(num_replicas)]
        self._low_water_tokens = low_water_tokens
        self._queue = queue
        self._work = weigh
        self._window: list[_Entry] = []  # the first ones of the queue
        self._suspects: deque[TokenizedPrompt] = deque()
        self._max_suspects = 1  # in a replica at a time
        self._alone: deque[TokenizedPrompt] = deque()  # suspects of a second death
        self._num_deaths: dict[str, int] = {}  # of replicas that held a prompt, for suspects
        self._aborted: set[str] = set()  # in the queue
        self._queued_ids: set[str] = set()
        self._queued_work = 0
        self._owners = PrefixOwners(prefix_block_size)

    def is_alive(self, replica: int) -> bool:
        """Tells whether a replica works."""
        return self._replicas[replica].is_alive

    @property
    def queued(self) -> set[str]:
        """The prompts that no replica has been given, or that came back from a dead one."""
        return self._queued_ids - self._aborted

    def add(self, prompt: TokenizedPrompt) -> None:
        """Takes a prompt in."""
        self._queue.add(prompt)
        self._queued_ids.add(prompt.request_id)
        self._queued_work += self._work(prompt)

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
        while (assigned := self._next_assignment()) is not None:
            yield assigned

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
        is_proved = len(state.assigned) == 1
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
            self._queued_work += self._work(prompt)
        return given_up

    def restarted(self, replica: int) -> None:
        """Books that a dead replica works again."""
        self._replicas[replica] = _Replica()

    def _next_assignment(self) -> tuple[int, TokenizedPrompt] | None:
        hungry = sorted(
            (replica.work_left, index)
            for index, replica in enumerate(self._replicas)
            if replica.is_alive and replica.num_waiting_prompt_tokens < self._low_water_tokens
        )
        fair_share = self._fair_share()
        for place, (work_left, index) in enumerate(hungry):
            if work_left >= fair_share and place == 0:
                return None  # what waits is for others, which will pull
            prompt = self._next_for(index)
            if prompt is not None:
                self._assign(index, prompt)
                return index, prompt
        return None

    def _fair_share(self) -> float:
        """Returns the work that each replica would have if what waits were dealt out."""
        alive = [replica.work_left for replica in self._replicas if replica.is_alive]
        return (sum(alive) + self._queued_work) / max(len(alive), 1)

    def _next_for(self, index: int) -> TokenizedPrompt | None:
        assigned = self._replicas[index].assigned
        if any(self._num_deaths.get(name, 0) > 1 for name in assigned):
            return None  # that one is tried alone
        if self._alone and assigned and index == self._least_busy():
            return None  # so that it becomes free to try one
        while (suspects := self._suspects_for(index)) is not None:
            prompt = suspects.popleft()
            if self._take(prompt):
                return prompt
        while (place := self._place_in_window(index)) is not None:
            prompt, _ = self._window.pop(place)
            if self._take(prompt):
                return prompt
        return None

    def _place_in_window(self, index: int) -> int | None:
        """Returns the waiting prompt that costs this replica no more than another, and least.

        If each costs it more: the one that does least, as long as another replica would take
        longer to come to it, or there is enough to do for all.
        """
        self._fill_window()
        costs = [self._owners.cost(digests, index) for _, digests in self._window]
        similar = self._similar(index)
        if similar is not None:
            cost = self._owners.cost(similar[1], index)
            if cost < min(costs):
                self._queue.remove(similar[0])
                self._window.append(similar)
                costs.append(cost)
        if not costs:
            return None
        least = min(costs)
        busiest = max(replica.work_left for replica in self._replicas)
        is_plenty = self._queued_work > self._low_water_tokens * len(self._replicas)
        is_worth_it = self._replicas[index].work_left + least.extra_tokens < busiest
        return costs.index(least) if not least.extra_tokens or is_plenty or is_worth_it else None

    def _similar(self, index: int) -> _Entry | None:
        """Returns a queued prompt that starts like the one that the replica was given last."""
        if self._owners.block_size is None:
            return None
        last_prompt = self._replicas[index].last_prompt
        prompt = self._queue.similar(last_prompt, self._owners.block_size)
        if prompt is None:
            return None
        return prompt, self._owners.digests(prompt.prompt_token_ids)

    def _fill_window(self) -> None:
        while len(self._window) < WINDOW and len(self._queue):
            prompt = self._queue.first()
            self._queue.remove(prompt)
            if prompt.request_id in self._aborted:
                self._take(prompt)
            else:
                self._window.append((prompt, self._owners.digests(prompt.prompt_token_ids)))

    def _take(self, prompt: TokenizedPrompt) -> bool:
        """Books that a prompt waits no more. Returns False if it has been given up meanwhile."""
        self._queued_ids.discard(prompt.request_id)
        self._queued_work -= self._work(prompt)
        if prompt.request_id in self._aborted:
            self._aborted.discard(prompt.request_id)
            self._num_deaths.pop(prompt.request_id, None)
            return False
        return True

    def _assign(self, index: int, prompt: TokenizedPrompt) -> None:
        replica = self._replicas[index]
        replica.assigned[prompt.request_id] = prompt
        replica.unreported_tokens.append(prompt.num_prompt_tokens)
        replica.work_left += self._work(prompt)
        replica.last_prompt = prompt.prompt_token_ids
        self._owners.add(self._owners.digests(prompt.prompt_token_ids), index)

    def _suspects_for(self, index: int) -> deque[TokenizedPrompt] | None:
        """Returns the suspects of which the replica may take the next; None if it may not."""
        assigned = self._replicas[index].assigned
        if self._alone and not assigned:
            return self._alone
        num_held = sum(name in assigned for name in self._num_deaths)
        return self._suspects if self._suspects and num_held < self._max_suspects else None

    def _least_busy(self) -> int:
        alive = (index for index, replica in enumerate(self._replicas) if replica.is_alive)
        return min(alive, key=lambda index: self._replicas[index].work_left)

    def _forget(self, replica: _Replica, request_id: str) -> None:
        replica.work_left -= self._work(replica.assigned.pop(request_id))
        if self._num_deaths.pop(request_id, None) is not None:
            self._max_suspects *= 2


def low_water_tokens(max_num_batched_tokens: int) -> int:
    """Returns how many prompt tokens a replica should have waiting: enough for two steps."""
    return 2 * max_num_batched_tokens
