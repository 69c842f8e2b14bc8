from __future__ import annotations

import itertools
import tracemalloc
from array import array
from collections.abc import Sequence

from hypothesis import given
from hypothesis import strategies as st

from furiosa_llm.request import Request
from furiosa_llm.scheduling.ordering import FifoQueue, OfflineQueue, WaitingQueue
from tests.factories import make_request


def take(queue: WaitingQueue[Request]) -> Request:
    request = queue.first()
    queue.remove(request)
    return request


def drain(queue: WaitingQueue[Request]) -> list[int]:
    return [take(queue).request_id for _ in range(len(queue))]


def test_online_requests_start_in_the_order_in_which_they_came() -> None:
    queue = FifoQueue[Request]()
    for index, length in enumerate((4, 9, 1)):
        queue.add(make_request(index, num_prompt_tokens=length))

    assert drain(queue) == [0, 1, 2]


def test_the_offline_request_that_may_compute_the_most_tokens_starts_first() -> None:
    queue = OfflineQueue[Request]()
    lengths = ((4, 4), (9, 1), (6, 9), (1, 7))
    for index, (prompt, answer) in enumerate(lengths):
        queue.add(make_request(index, num_prompt_tokens=prompt, max_tokens=answer))

    assert drain(queue) == [2, 1, 0, 3]


@given(st.lists(st.one_of(st.none(), st.integers(1, 4)), max_size=30))
def test_the_longest_comes_out_first_however_adds_and_pops_mix(lengths: list[int | None]) -> None:
    queue = OfflineQueue[Request]()
    waiting: list[tuple[int, int]] = []  # length, negative number: earlier ones are larger
    for index, length in enumerate(lengths):
        if length is not None:
            queue.add(make_request(index, num_prompt_tokens=length))
            waiting.append((length, -index))
        elif waiting:
            expected = max(waiting)
            waiting.remove(expected)
            assert take(queue).request_id == -expected[1]

    assert drain(queue) == [-number for _, number in sorted(waiting, reverse=True)]


def test_a_preempted_request_starts_before_all_others() -> None:
    queues: list[WaitingQueue[Request]] = [FifoQueue(), OfflineQueue()]
    for queue in queues:
        queue.add(make_request(0, num_prompt_tokens=9))
        queue.put_back(make_request(1, num_prompt_tokens=1))

        assert len(queue) == 2
        assert queue.first().request_id == 1
        assert drain(queue) == [1, 0]


def test_online_no_request_starts_ahead_of_its_turn() -> None:
    queue = FifoQueue[Request]()
    for index in range(2):
        queue.add(make_request(index, prompt=[7, 7, index]))

    assert queue.similar([7, 7, 1], 1) is None
    assert queue.largest(lambda _: True) is None


def test_the_longest_that_fits_is_found_among_the_shorter_ones() -> None:
    queue = OfflineQueue[Request]()
    for index, length in enumerate((9, 2, 7, 4, 7)):
        queue.add(make_request(index, num_prompt_tokens=length))

    largest = queue.largest(lambda request: request.num_prompt_tokens < 9)

    assert largest is not None
    assert largest.request_id == 2  # the older one of two
    assert queue.largest(lambda _: False) is None


def test_nothing_starts_ahead_of_a_preempted_request() -> None:
    queue = OfflineQueue[Request]()
    queue.add(make_request(0, prompt=[7, 7, 7]))
    queue.put_back(make_request(1))

    assert queue.similar([7, 7, 7], 1) is None
    assert queue.largest(lambda _: True) is None


PROMPTS = st.lists(st.lists(st.integers(1, 2), min_size=1, max_size=6), min_size=1, max_size=12)


@given(prompts=PROMPTS, last=st.lists(st.integers(1, 2), max_size=6), num_tokens=st.integers(1, 3))
def test_the_most_similar_prompt_shares_more_leading_tokens_than_any_other(
    prompts: list[list[int]], last: list[int], num_tokens: int
) -> None:
    queue = OfflineQueue[Request]()
    for index, prompt in enumerate(prompts):
        queue.add(make_request(index, prompt=prompt))
    most = max(num_shared(prompt, last) for prompt in prompts)

    similar = queue.similar(last, num_tokens)

    if most < num_tokens:
        assert similar is None
    else:
        assert similar is not None
        assert num_shared(similar.prompt_token_ids, last) == most
        queue.remove(similar)
        assert similar.request_id not in drain(queue)


def num_shared(one: Sequence[int], other: Sequence[int]) -> int:
    pairs = zip(one, other, strict=False)
    return len(list(itertools.takewhile(lambda pair: pair[0] == pair[1], pairs)))


def test_a_waiting_request_costs_little_memory_beside_itself() -> None:
    requests = [make_request(index, prompt=array("i", [index, 7])) for index in range(10_000)]
    queue = OfflineQueue[Request]()
    tracemalloc.start()

    for request in requests:
        queue.add(request)
    num_bytes, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()

    assert num_bytes < 20 * len(requests)
