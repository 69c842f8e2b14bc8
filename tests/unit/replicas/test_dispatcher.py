from __future__ import annotations

import itertools
import zlib
from collections import Counter

from hypothesis import given, settings
from hypothesis import strategies as st

from furiosa_llm.replicas.dispatcher import Dispatcher
from furiosa_llm.request import TokenizedPrompt
from furiosa_llm.sampling_params import SamplingParams
from furiosa_llm.scheduling.ordering import FifoQueue, OfflineQueue

Assigned = list[tuple[int, str]]


def make_prompt(
    name: str, *, num_tokens: int = 10, max_tokens: int = 10, group: int | None = None
) -> TokenizedPrompt:
    """A prompt that starts unlike any other, or like the others of its group."""
    start = zlib.crc32(name.encode()) % 10**6 if group is None else group
    return TokenizedPrompt(
        request_id=name,
        text=None,
        prompt_token_ids=[start] * num_tokens,
        sampling_params=SamplingParams(max_tokens=max_tokens),
        max_tokens=max_tokens,
        arrival_time=0.0,
    )


def make_dispatcher(
    num_replicas: int = 2,
    *,
    low_water_tokens: int = 20,
    is_offline: bool = False,
    prefix_block_size: int | None = None,
) -> Dispatcher:
    return Dispatcher(
        num_replicas,
        low_water_tokens=low_water_tokens,
        queue=OfflineQueue() if is_offline else FifoQueue(),
        prefix_block_size=prefix_block_size,
    )


def assign(dispatcher: Dispatcher) -> Assigned:
    return [(replica, prompt.request_id) for replica, prompt in dispatcher.assignments()]


def test_prompts_go_to_the_replica_with_the_least_work_left() -> None:
    dispatcher = make_dispatcher(low_water_tokens=1000)
    for name, max_tokens in (("a", 50), ("b", 10), ("c", 10), ("d", 10), ("e", 90), ("f", 10)):
        dispatcher.add(make_prompt(name, max_tokens=max_tokens))

    assert assign(dispatcher) == [(0, "a"), (1, "b"), (1, "c"), (1, "d"), (0, "e"), (1, "f")]


def test_a_replica_pulls_no_more_than_it_needs_until_it_reports() -> None:
    dispatcher = make_dispatcher(1, low_water_tokens=20)
    for index in range(6):
        dispatcher.add(make_prompt(str(index)))

    first = assign(dispatcher)
    dispatcher.reported(0, num_received=2, num_waiting_tokens=10)
    second = assign(dispatcher)
    dispatcher.reported(0, num_received=2, num_waiting_tokens=0)  # "2" is still on its way
    third = assign(dispatcher)

    assert [first, second, third] == [[(0, "0"), (0, "1")], [(0, "2")], [(0, "3")]]


def test_offline_the_longest_goes_first() -> None:
    dispatcher = make_dispatcher(1, low_water_tokens=1000, is_offline=True)
    for name, length in (("short", 5), ("long", 50), ("middle", 20)):
        dispatcher.add(make_prompt(name, num_tokens=length))

    assert [name for _, name in assign(dispatcher)] == ["long", "middle", "short"]


def test_a_replica_with_its_share_of_the_work_leaves_the_rest_to_others() -> None:
    dispatcher = make_dispatcher(low_water_tokens=20, is_offline=True)
    for name, max_tokens in (("long", 200), ("a", 30), ("b", 30), ("c", 30), ("d", 30)):
        dispatcher.add(make_prompt(name, max_tokens=max_tokens))
    first = assign(dispatcher)
    dispatcher.reported(0, num_received=1, num_waiting_tokens=0)
    dispatcher.reported(1, num_received=2, num_waiting_tokens=20)
    second = assign(dispatcher)
    dispatcher.reported(1, num_received=2, num_waiting_tokens=0)

    assert [replica for replica, _ in first] == [0, 1, 1]
    assert second == []  # the first has nothing waiting, but much to do
    assert [replica for replica, _ in assign(dispatcher)] == [1, 1]


def test_prompts_count_as_the_work_that_they_are_weighed_at() -> None:
    dispatcher = Dispatcher(
        2,
        low_water_tokens=1000,
        queue=FifoQueue(),
        weigh=lambda _: 1,
    )
    for name, max_tokens in (("a", 50), ("b", 10), ("c", 10), ("d", 10)):
        dispatcher.add(make_prompt(name, max_tokens=max_tokens))

    assert assign(dispatcher) == [(0, "a"), (1, "b"), (0, "c"), (1, "d")]


def test_offline_a_replica_goes_on_with_the_prefix_that_it_has() -> None:
    dispatcher = make_dispatcher(low_water_tokens=200, is_offline=True, prefix_block_size=8)
    for index in range(200):  # more than the window holds
        dispatcher.add(make_prompt(str(index), num_tokens=20 + index % 7, group=index % 40))

    groups: dict[int, list[int]] = {0: [], 1: []}
    for _ in range(200):
        for replica, name in assign(dispatcher):
            groups[replica].append(int(name) % 40)
            dispatcher.finished(replica, name)
        for replica in range(2):
            dispatcher.reported(replica, num_received=len(groups[replica]), num_waiting_tokens=0)

    changes = [sum(a != b for a, b in itertools.pairwise(each)) for each in groups.values()]
    assert sum(map(len, groups.values())) == 200
    assert sum(changes) < 60


def test_prompts_that_share_a_prefix_stay_together() -> None:
    dispatcher = make_dispatcher(low_water_tokens=200, prefix_block_size=8)
    for index in range(8):
        dispatcher.add(make_prompt(str(index), num_tokens=40, group=index % 2))

    replica_of = {name: replica for replica, name in assign(dispatcher)}

    assert len({replica_of[name] for name in "0246"}) == 1
    assert {replica_of["0"], replica_of["1"]} == {0, 1}


def test_a_group_is_divided_rather_than_leaving_a_replica_without_work() -> None:
    dispatcher = make_dispatcher(low_water_tokens=200, prefix_block_size=8)
    for index in range(8):
        dispatcher.add(make_prompt(str(index), num_tokens=40, max_tokens=100, group=0))

    assert Counter(replica for replica, _ in assign(dispatcher)) == {0: 4, 1: 4}


def test_what_an_aborted_prompt_leaves_is_told_to_the_replica_that_has_it() -> None:
    dispatcher = make_dispatcher(1)
    for name in ("running", "queued", "kept"):
        dispatcher.add(make_prompt(name, num_tokens=20))
    assert assign(dispatcher) == [(0, "running")]

    assert dispatcher.abort(["running", "queued", "unknown"]) == {0: ("running",)}
    assert dispatcher.prompt(0, "running") is None
    dispatcher.reported(0, num_received=1, num_waiting_tokens=0)
    assert assign(dispatcher) == [(0, "kept")]


def test_prompts_of_a_dead_replica_go_to_others_one_at_a_time_beside_fresh_ones() -> None:
    dispatcher = make_dispatcher(low_water_tokens=1000)
    for name in "abcd":
        dispatcher.add(make_prompt(name))
    assert assign(dispatcher) == [(0, "a"), (1, "b"), (0, "c"), (1, "d")]

    assert dispatcher.died(0) == []
    dispatcher.add(make_prompt("fresh"))
    second = assign(dispatcher)
    dispatcher.finished(1, "a")
    third = assign(dispatcher)

    assert second == [(1, "a"), (1, "fresh")]
    assert third == [(1, "c")]


def test_only_a_prompt_that_kills_alone_is_given_up() -> None:
    dispatcher = make_dispatcher(low_water_tokens=1000)
    for name in "abcdef":
        dispatcher.add(make_prompt(name))
    assign(dispatcher)

    first = dispatcher.died(0)  # a, c and e
    dispatcher.restarted(0)
    assert assign(dispatcher) == [(0, "a"), (1, "c")]
    second = dispatcher.died(1)  # b, d, f, and c for the second time: any of them may have killed
    dispatcher.restarted(1)
    alone = assign(dispatcher)
    third = dispatcher.died(1)

    assert (first, second) == ([], [])
    assert alone == [(1, "c")]
    assert [prompt.request_id for prompt in third] == ["c"]


def test_whoever_kills_no_innocent_prompt_is_given_up() -> None:
    killers = {"4", "5", "17"}
    dispatcher = make_dispatcher(low_water_tokens=1000)
    for name in map(str, range(24)):
        dispatcher.add(make_prompt(name))
    held: dict[int, list[str]] = {0: [], 1: []}
    given_up: set[str] = set()

    while len(given_up) < len(killers) or any(held.values()):
        for index, name in assign(dispatcher):
            held[index].append(name)
        index = 0 if held[0] else 1
        if killers & set(held[index]):
            given_up |= {prompt.request_id for prompt in dispatcher.died(index)}
            dispatcher.restarted(index)
            held[index] = []
        else:
            dispatcher.finished(index, held[index].pop())

    assert given_up == killers


def test_suspects_that_are_answered_let_more_be_tried_together() -> None:
    dispatcher = make_dispatcher(1, low_water_tokens=1000)
    for name in "abcdefgh":
        dispatcher.add(make_prompt(name))
    assign(dispatcher)
    dispatcher.died(0)
    dispatcher.restarted(0)

    rounds = []
    for _ in range(3):
        rounds.append([name for _, name in assign(dispatcher)])
        for name in rounds[-1]:
            dispatcher.finished(0, name)

    assert rounds == [["a"], ["b", "c"], ["d", "e", "f", "g", "h"]]


def test_suspects_that_were_together_in_a_second_death_are_tried_one_by_one() -> None:
    dispatcher = make_dispatcher(1, low_water_tokens=1000)
    for name in "abcd":
        dispatcher.add(make_prompt(name))
    assign(dispatcher)
    dispatcher.died(0)
    dispatcher.restarted(0)
    assign(dispatcher)
    dispatcher.finished(0, "a")
    assert assign(dispatcher) == [(0, "b"), (0, "c")]

    second = dispatcher.died(0)
    dispatcher.restarted(0)
    third = assign(dispatcher)
    dispatcher.finished(0, "b")
    fourth = assign(dispatcher)

    assert (second, third, fourth) == ([], [(0, "b")], [(0, "c")])
    assert [prompt.request_id for prompt in dispatcher.died(0)] == ["c"]


class World:
    """Replicas that answer, die and are started again, as a schedule of draws says."""

    def __init__(self, dispatcher: Dispatcher, num_replicas: int, killer: str | None) -> None:
        self.dispatcher = dispatcher
        self.held: list[list[str]] = [[] for _ in range(num_replicas)]
        self.num_received = [0] * num_replicas
        self.killer = killer
        self.finished: list[str] = []
        self.given_up: list[str] = []

    def supply(self) -> None:
        for replica, prompt in self.dispatcher.assignments():
            assert self.dispatcher.is_alive(replica)
            self.held[replica].append(prompt.request_id)
            self.num_received[replica] += 1

    def work(self, replica: int, place: int) -> None:
        """The replica answers one of its prompts and reports; or dies of it."""
        if not self.held[replica]:
            return
        name = self.held[replica][place % len(self.held[replica])]
        if name == self.killer:
            self.die(replica)
            return
        self.held[replica].remove(name)
        self.dispatcher.finished(replica, name)
        self.finished.append(name)
        num_received = self.num_received[replica]
        self.dispatcher.reported(replica, num_received=num_received, num_waiting_tokens=0)

    def die(self, replica: int) -> None:
        self.given_up += [prompt.request_id for prompt in self.dispatcher.died(replica)]
        self.dispatcher.restarted(replica)
        self.held[replica], self.num_received[replica] = [], 0


@settings(max_examples=200)
@given(
    groups=st.lists(st.sampled_from([None, 1, 2]), min_size=1, max_size=30),
    num_replicas=st.integers(1, 4),
    is_offline=st.booleans(),
    block_size=st.sampled_from([None, 4]),
    killer=st.sampled_from([None, "0", "7"]),
    draws=st.lists(st.tuples(st.integers(0, 3), st.integers(0, 9)), min_size=1, max_size=20),
)
def test_every_prompt_is_answered_once_and_only_the_killer_is_given_up(
    groups: list[int | None],
    num_replicas: int,
    is_offline: bool,
    block_size: int | None,
    killer: str | None,
    draws: list[tuple[int, int]],
) -> None:
    dispatcher = make_dispatcher(
        num_replicas, is_offline=is_offline, prefix_block_size=block_size, low_water_tokens=35
    )
    names = [str(index) for index in range(len(groups))]
    for name, group in zip(names, groups, strict=True):
        dispatcher.add(make_prompt(name, group=group))
    world = World(dispatcher, num_replicas, killer)
    for _ in range(len(names) + 4):
        for replica, place in draws:
            world.supply()
            world.work(replica % num_replicas, place)
        for replica in range(num_replicas):  # nobody stays idle for ever
            world.supply()
            world.work(replica, 0)
    killed = [name for name in names if name == killer]

    assert sorted(world.finished + world.given_up) == sorted(names)
    assert world.given_up == killed
