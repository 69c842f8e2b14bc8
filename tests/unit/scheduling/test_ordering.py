from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from furiosa_llm.scheduling.ordering import FifoQueue, OfflineQueue, WaitingQueue
from tests.factories import make_request


def drain(queue: WaitingQueue) -> list[int]:
    return [queue.pop().request_id for _ in range(len(queue))]


def test_online_requests_start_in_the_order_in_which_they_came() -> None:
    queue = FifoQueue()
    for index, length in enumerate((4, 9, 1)):
        queue.add(make_request(index, num_prompt_tokens=length))

    assert drain(queue) == [0, 1, 2]


def test_the_longest_offline_request_starts_first() -> None:
    queue = OfflineQueue(prefix_length=4)
    for index, length in enumerate((4, 9, 6)):
        queue.add(make_request(index, prompt=[index] * length))

    assert drain(queue) == [1, 2, 0]


def test_offline_requests_with_the_same_prefix_start_one_after_another() -> None:
    queue = OfflineQueue(prefix_length=2)
    prompts = ([1, 1, 5], [2, 2, 5, 5], [1, 1, 5, 5, 5], [2, 2, 5])
    for index, prompt in enumerate(prompts):
        queue.add(make_request(index, prompt=prompt))

    assert drain(queue) == [2, 0, 1, 3]


def test_a_preempted_request_starts_before_all_others() -> None:
    for queue in (FifoQueue(), OfflineQueue(prefix_length=2)):
        queue.add(make_request(0, num_prompt_tokens=9))
        queue.put_back(make_request(1, num_prompt_tokens=1))

        assert drain(queue) == [1, 0]


@given(st.lists(st.one_of(st.none(), st.tuples(st.integers(0, 2), st.integers(1, 5)))))
def test_every_request_comes_out_once_however_adds_and_pops_mix(
    actions: list[tuple[int, int] | None],
) -> None:
    queue = OfflineQueue(prefix_length=2)
    added: list[int] = []
    popped: list[int] = []
    for index, action in enumerate(actions):
        if action is not None:
            group, length = action
            queue.add(make_request(index, prompt=[group, group] + [9] * length))
            added.append(index)
        elif len(queue):
            expected = queue.peek().request_id
            popped.append(queue.pop().request_id)
            assert popped[-1] == expected

    popped += drain(queue)

    assert sorted(popped) == added
