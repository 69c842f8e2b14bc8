"""Which requests start beside those that run, and how many share a step."""

from __future__ import annotations

import pytest

from furiosa_llm.engine_limits import CacheConfig
from furiosa_llm.request import FinishReason, Request
from furiosa_llm.scheduling.answer_lengths import AnswerLengths
from furiosa_llm.scheduling.block_forecast import BlockForecast
from furiosa_llm.scheduling.ordering import FifoQueue, OfflineQueue, WaitingQueue
from tests.factories import FakeClock, make_request, make_scheduler, run_step


def test_no_request_starts_with_blocks_that_were_just_given_back() -> None:
    scheduler = make_scheduler(num_blocks=3, block_size=4, prefill_chunk_size=4)
    scheduler.add(make_request(0, num_prompt_tokens=4))
    scheduler.add(make_request(1, num_prompt_tokens=8, max_tokens=2))

    steps = [run_step(scheduler) for _ in range(2)]

    assert [[(s.request_id, s.num_tokens) for s in step.requests] for step in steps] == [
        [(0, 4), (1, 4)],
        [(0, 1)],
    ]


@pytest.mark.parametrize("waiting", [FifoQueue[Request](), OfflineQueue[Request]()])
def test_of_two_preempted_requests_the_one_that_gave_way_last_starts_first(
    waiting: WaitingQueue[Request],
) -> None:
    for index in range(2):
        waiting.put_back(make_request(index))  # the newest gives way first

    assert waiting.first().request_id == 1


def test_offline_answers_that_were_given_up_tell_nothing_of_lengths() -> None:
    scheduler = make_scheduler(num_blocks=16, block_size=4, is_offline=True)
    requests = [make_request(index, num_prompt_tokens=4, max_tokens=40) for index in range(8)]
    for request in requests:
        scheduler.add(request)
    run_step(scheduler)
    running = next(request for request in requests if request.num_output_tokens)

    scheduler.finish(running, FinishReason.CANCELLED)

    assert len(run_step(scheduler).requests) == 1


@pytest.mark.parametrize("num_cached_blocks", [1, 2, 3])
def test_cached_blocks_that_nobody_holds_spare_a_request_no_block(num_cached_blocks: int) -> None:
    request = make_request(num_prompt_tokens=14, max_tokens=8)
    forecasts = [
        BlockForecast(
            CacheConfig(num_blocks=num_blocks, block_size=4, enable_prefix_caching=True),
            AnswerLengths(),
            [],
            num_used_blocks=0,
        )
        for num_blocks in range(1, 12)
    ]

    found = [
        [
            forecast.has_room_for(request, num_cached_blocks=number, num_idle=number)
            for forecast in forecasts
        ]
        for number in (0, num_cached_blocks)
    ]

    assert found[0] == found[1]
    assert {True, False} == set(found[0])


def test_steps_are_divided_by_as_many_as_may_be_in_flight() -> None:
    scheduler = make_scheduler(num_stages=4, num_steps_in_flight=2)
    for index in range(4):
        scheduler.add(make_request(index))

    assert [len(scheduler.schedule().requests) for _ in range(2)] == [2, 2]


def test_the_time_of_a_request_is_counted_from_its_first_start_only() -> None:
    clock = FakeClock()
    scheduler = make_scheduler(num_blocks=3, block_size=4, clock=clock)
    scheduler.add(make_request(0, num_prompt_tokens=4, max_tokens=2))
    request = make_request(1, num_prompt_tokens=8, max_tokens=3, timeout_seconds=9.0)
    scheduler.add(request)
    found = []
    for _ in range(3):
        run_step(scheduler)
        clock.now += 1.0
    assert request.costs.num_preemptions == 1
    for clock.now in (8.0, 9.0, 20.0):
        found.append(scheduler.take_overdue())

    assert found == [[], [request], []]
