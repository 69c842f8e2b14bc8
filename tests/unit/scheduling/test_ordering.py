from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from furiosa_llm.request import Request
from furiosa_llm.scheduling.ordering import FifoQueue, LongestFirstQueue, WaitingQueue
from tests.factories import make_request


def drain(queue: WaitingQueue[Request]) -> list[int]:
    return [queue.pop().request_id for _ in range(len(queue))]


def test_online_requests_start_in_the_order_in_which_they_came() -> None:
    queue = FifoQueue[Request]()
    for index, length in enumerate((4, 9, 1)):
        queue.add(make_request(index, num_prompt_tokens=length))

    assert drain(queue) == [0, 1, 2]


def test_the_offline_request_that_may_compute_the_most_tokens_starts_first() -> None:
    queue = LongestFirstQueue[Request]()
    lengths = ((4, 4), (9, 1), (6, 9), (1, 7))
    for index, (prompt, answer) in enumerate(lengths):
        queue.add(make_request(index, num_prompt_tokens=prompt, max_tokens=answer))

    assert drain(queue) == [2, 1, 0, 3]


@given(st.lists(st.one_of(st.none(), st.integers(1, 4)), max_size=30))
def test_the_longest_comes_out_first_however_adds_and_pops_mix(lengths: list[int | None]) -> None:
    queue = LongestFirstQueue[Request]()
    waiting: list[tuple[int, int]] = []  # length, negative number: earlier ones are larger
    for index, length in enumerate(lengths):
        if length is not None:
            queue.add(make_request(index, num_prompt_tokens=length))
            waiting.append((length, -index))
        elif waiting:
            expected = max(waiting)
            waiting.remove(expected)
            assert queue.pop().request_id == -expected[1]

    assert drain(queue) == [-number for _, number in sorted(waiting, reverse=True)]


def test_a_preempted_request_starts_before_all_others() -> None:
    queues: list[WaitingQueue[Request]] = [FifoQueue(), LongestFirstQueue()]
    for queue in queues:
        queue.add(make_request(0, num_prompt_tokens=9))
        queue.put_back(make_request(1, num_prompt_tokens=1))

        assert len(queue) == 2
        assert queue.peek().request_id == 1
        assert drain(queue) == [1, 0]
