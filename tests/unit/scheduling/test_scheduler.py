from __future__ import annotations

from typing import TypedDict

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from furiosa_llm.errors import NeverFitsError, PromptTooLongError
from furiosa_llm.request import FinishReason, Request
from furiosa_llm.sampling_params import SamplingParams
from furiosa_llm.scheduler_output import StepResult
from furiosa_llm.scheduling.scheduler import Scheduler
from tests.factories import FakeClock, make_request, make_scheduler, run_step, sample_all


def shares_of(scheduler: Scheduler) -> list[tuple[int, int]]:
    step = run_step(scheduler)
    return [(share.request_id, share.num_tokens) for share in step.requests]


def test_a_prompt_longer_than_the_budget_is_computed_in_chunks() -> None:
    scheduler = make_scheduler(token_budget=8)
    scheduler.add(make_request(0, num_prompt_tokens=20))

    assert [shares_of(scheduler) for _ in range(4)] == [[(0, 8)], [(0, 8)], [(0, 4)], [(0, 1)]]


def test_a_decode_shares_its_step_with_a_chunk_of_another_prompt() -> None:
    scheduler = make_scheduler(token_budget=8)
    scheduler.add(make_request(0, num_prompt_tokens=4))
    scheduler.add(make_request(1, num_prompt_tokens=20))

    assert [shares_of(scheduler) for _ in range(2)] == [[(0, 4), (1, 4)], [(0, 1), (1, 7)]]


def test_a_long_prompt_leaves_a_token_for_each_request_that_started_later() -> None:
    scheduler = make_scheduler(token_budget=4, max_num_seqs=4)
    scheduler.add(make_request(0, num_prompt_tokens=2, max_tokens=4))
    scheduler.add(make_request(1, num_prompt_tokens=30))
    shares_of(scheduler)
    scheduler.add(make_request(2, num_prompt_tokens=2))

    assert shares_of(scheduler) == [(0, 1), (1, 3)]


def test_the_newest_request_gives_way_when_blocks_run_out() -> None:
    scheduler = make_scheduler(num_blocks=3, block_size=4)
    scheduler.add(make_request(0, num_prompt_tokens=4))
    scheduler.add(make_request(1, num_prompt_tokens=8, max_tokens=2))

    assert shares_of(scheduler) == [(0, 4), (1, 8)]
    assert shares_of(scheduler) == [(0, 1)]
    assert scheduler.num_waiting == 1


def test_admission_leaves_the_spare_blocks_free() -> None:
    scheduler = make_scheduler(num_blocks=10, block_size=4, spare_blocks_ratio=0.5)
    for index in range(3):
        scheduler.add(make_request(index, num_prompt_tokens=12, max_tokens=1))

    assert shares_of(scheduler) == [(0, 12)]


def test_a_request_that_can_never_fit_is_refused_when_it_is_added() -> None:
    scheduler = make_scheduler(num_blocks=4, block_size=16, max_model_len=100)

    with pytest.raises(PromptTooLongError, match="maximum context length is 100 tokens"):
        scheduler.add(make_request(0, num_prompt_tokens=99, max_tokens=2))
    with pytest.raises(NeverFitsError, match="need 5 KV-cache blocks, but the cache has 4"):
        scheduler.add(make_request(1, num_prompt_tokens=60, max_tokens=5))

    assert not scheduler.has_unfinished


def test_a_request_of_the_same_step_shares_the_blocks_being_filled() -> None:
    scheduler = make_scheduler(block_size=16, enable_prefix_caching=True)
    scheduler.add(make_request(0, num_prompt_tokens=40))
    scheduler.add(make_request(1, num_prompt_tokens=40))

    step = run_step(scheduler)

    first, second = step.requests
    assert (second.start_position, second.num_tokens) == (32, 8)
    assert first.block_ids[:2] == second.block_ids[:2]
    assert step.counts.num_cached_tokens == 32
    scheduler.check_integrity()


def test_a_prompt_that_is_wholly_cached_computes_its_last_token_again() -> None:
    scheduler = make_scheduler(block_size=16, enable_prefix_caching=True)
    scheduler.add(make_request(0, num_prompt_tokens=32))
    scheduler.add(make_request(1, num_prompt_tokens=32))

    assert shares_of(scheduler) == [(0, 32), (1, 16)]


def test_min_tokens_suppresses_every_token_that_could_end_the_answer() -> None:
    scheduler = make_scheduler(eos_token_ids=frozenset({2}))
    params = SamplingParams(min_tokens=1, max_tokens=4, stop_token_ids=(9,))
    scheduler.add(make_request(0, params=params))

    first, second = run_step(scheduler), run_step(scheduler)

    assert [
        share.sampling.suppressed_token_ids
        for step in (first, second)
        for share in step.requests
        if share.sampling
    ] == [(2, 9), ()]


@pytest.mark.parametrize(
    ("token_id", "params", "ended"),
    [
        (2, SamplingParams(), (FinishReason.STOP, None)),
        (2, SamplingParams(ignore_eos=True), (None, None)),
        (9, SamplingParams(stop_token_ids=(9,)), (FinishReason.STOP, 9)),
        (9, SamplingParams(), (None, None)),
    ],
)
def test_an_answer_ends_at_the_end_token_or_a_stop_token(
    token_id: int, params: SamplingParams, ended: tuple[FinishReason | None, int | None]
) -> None:
    scheduler = make_scheduler(eos_token_ids=frozenset({2}))
    request = make_request(0, params=params)
    scheduler.add(request)

    step = scheduler.schedule()
    scheduler.update(step, sample_all(step, token_id))

    assert (request.finish_reason, request.stop_reason) == ended


def test_a_request_given_up_while_it_waits_is_passed_over() -> None:
    scheduler = make_scheduler(max_num_seqs=1)
    requests = [make_request(index) for index in range(3)]
    for request in requests:
        scheduler.add(request)
    run_step(scheduler)

    scheduler.finish(requests[1], FinishReason.CANCELLED)
    scheduler.finish(requests[0], FinishReason.CANCELLED)

    assert shares_of(scheduler) == [(2, 4)]
    scheduler.check_integrity()


def test_a_result_for_a_request_given_up_meanwhile_is_dropped() -> None:
    scheduler = make_scheduler()
    request = make_request(0)
    scheduler.add(request)
    step = scheduler.schedule()

    scheduler.finish(request, FinishReason.CANCELLED)

    assert scheduler.update(step, sample_all(step)) == []
    assert not scheduler.has_unfinished


def test_block_seconds_are_the_integral_of_the_blocks_held() -> None:
    clock = FakeClock()
    scheduler = make_scheduler(block_size=4, clock=clock)
    request = make_request(0, num_prompt_tokens=4, max_tokens=2)
    scheduler.add(request)

    run_step(scheduler)  # one block from second 0
    clock.now = 2.0
    step = scheduler.schedule()  # a second one from second 2
    clock.now = 5.0
    scheduler.update(step, sample_all(step))

    assert request.costs.block_seconds == 1 * 2.0 + 2 * 3.0
    assert request.costs.peak_blocks == 2


class Load(TypedDict):
    lengths: list[tuple[int, int, int]]
    num_blocks: int
    token_budget: int
    enable_prefix_caching: bool
    is_offline: bool
    spare_blocks_ratio: float


LOADS = st.fixed_dictionaries(
    {
        "lengths": st.lists(
            # prompt length, answer length, which of three texts the prompt is cut from
            st.tuples(st.integers(1, 40), st.integers(1, 24), st.integers(0, 2)),
            min_size=1,
            max_size=12,
        ),
        "num_blocks": st.integers(16, 24),
        "token_budget": st.integers(4, 60),
        "enable_prefix_caching": st.booleans(),
        "is_offline": st.booleans(),
        "spare_blocks_ratio": st.sampled_from([0.0, 0.2, 0.9]),
    }
)


@settings(max_examples=150, deadline=None)
@given(load=LOADS)
def test_every_request_finishes_and_no_block_is_lost(load: Load) -> None:
    clock = FakeClock()
    scheduler = make_scheduler(
        num_blocks=load["num_blocks"],
        block_size=4,
        max_num_seqs=4,
        token_budget=load["token_budget"],
        enable_prefix_caching=load["enable_prefix_caching"],
        is_offline=load["is_offline"],
        spare_blocks_ratio=load["spare_blocks_ratio"],
        clock=clock,
    )
    requests = [
        make_request(index, prompt=[text] * prompt, max_tokens=answer)
        for index, (prompt, answer, text) in enumerate(load["lengths"])
    ]
    for request in requests:
        scheduler.add(request)

    totals = run_to_end(scheduler, requests, load, clock)

    assert [r.num_output_tokens for r in requests] == [answer for _, answer, _ in load["lengths"]]
    assert scheduler.kv_cache_usage == 0
    assert totals["prefill"] + totals["cached"] == sum(r.num_prompt_tokens for r in requests)
    assert totals["cached"] == sum(r.costs.num_cached_tokens for r in requests)
    assert totals["decode"] == sum(r.num_output_tokens - 1 for r in requests)
    assert totals["recomputed"] == sum(r.costs.num_recomputed_tokens for r in requests)
    assert totals["preemptions"] == sum(r.costs.num_preemptions for r in requests)
    for request in requests:
        costs = request.costs
        assert costs.first_token_time is not None
        assert costs.finish_time is not None
        assert costs.start_time <= costs.first_token_time <= costs.finish_time


def run_to_end(
    scheduler: Scheduler, requests: list[Request], load: Load, clock: FakeClock
) -> dict[str, int]:
    totals = dict.fromkeys(("prefill", "cached", "decode", "recomputed", "preemptions"), 0)
    peak_blocks = dict.fromkeys(range(len(requests)), 0)
    while scheduler.has_unfinished:
        step = scheduler.schedule()
        scheduler.check_integrity()
        clock.now += 1.0
        counts = step.counts
        assert 0 < step.num_tokens <= load["token_budget"]
        assert len(step.requests) <= 4
        assert counts.num_used_blocks + counts.num_free_blocks == load["num_blocks"]
        assert step.num_tokens == (
            counts.num_prefill_tokens + counts.num_decode_tokens + counts.num_recomputed_tokens
        )
        totals["prefill"] += counts.num_prefill_tokens
        totals["cached"] += counts.num_cached_tokens
        totals["decode"] += counts.num_decode_tokens
        totals["recomputed"] += counts.num_recomputed_tokens
        totals["preemptions"] += counts.num_preemptions
        for share in step.requests:
            tokens = share.start_position + share.num_tokens
            assert len(share.block_ids) * 4 >= tokens
            request_id = share.request_id
            peak_blocks[request_id] = max(peak_blocks[request_id], len(share.block_ids))
        scheduler.update(step, StepResult(token_ids=sample_all(step).token_ids))
        scheduler.check_integrity()
    assert [request.costs.peak_blocks for request in requests] == list(peak_blocks.values())
    return totals
