from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import TypedDict

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from furiosa_llm.errors import NeverFitsError, PromptTooLongError
from furiosa_llm.execution.pending_tokens import PendingTokens
from furiosa_llm.request import PENDING_TOKEN_ID, FinishReason, Request
from furiosa_llm.sampling_params import SamplingParams
from furiosa_llm.scheduler_output import SchedulerOutput, StepResult
from furiosa_llm.scheduling.admission_gate import AdmissionGate
from furiosa_llm.scheduling.answer_lengths import AnswerLengths
from furiosa_llm.scheduling.ordering import FifoQueue, OfflineQueue
from furiosa_llm.scheduling.scheduler import Scheduler
from furiosa_llm.scheduling.waiting_room import Strategy
from tests.factories import FakeClock, make_request, make_scheduler, run_step, sample_all

EOS = 2
PENALTIES = SamplingParams(temperature=0, presence_penalty=1.0)  # which take the whole answer


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
        (2, SamplingParams(min_tokens=1), (FinishReason.STOP, None)),
        (2, SamplingParams(min_tokens=2), (None, None)),
        (9, SamplingParams(stop_token_ids=(9,), min_tokens=1), (FinishReason.STOP, 9)),
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


def test_a_long_prompt_is_cut_to_the_chunk_size() -> None:
    scheduler = make_scheduler(token_budget=64, prefill_chunk_size=16)
    scheduler.add(make_request(0, num_prompt_tokens=20))
    scheduler.add(make_request(1, num_prompt_tokens=4))

    assert [shares_of(scheduler) for _ in range(2)] == [[(0, 16), (1, 4)], [(0, 4), (1, 1)]]


def test_a_request_goes_on_with_a_token_that_is_still_being_chosen() -> None:
    scheduler = make_scheduler()
    request = make_request(0, num_prompt_tokens=4, max_tokens=2)
    scheduler.add(request)

    first, second, third = (scheduler.schedule() for _ in range(3))

    assert [share.token_ids for share in second.requests] == [(PENDING_TOKEN_ID,)]
    assert third.requests == ()  # its last token is being chosen
    scheduler.update(first, sample_all(first, 8))
    scheduler.update(second, sample_all(second, 9))
    assert request.output_token_ids == [8, 9]


def test_a_token_computed_ahead_of_the_end_of_an_answer_is_dropped() -> None:
    scheduler = make_scheduler(eos_token_ids=frozenset({2}))
    request = make_request(0)
    scheduler.add(request)
    first, second = scheduler.schedule(), scheduler.schedule()

    scheduler.update(first, sample_all(first, 2))

    assert scheduler.update(second, sample_all(second)) == []
    assert request.output_token_ids == [2]
    assert not scheduler.has_unfinished


def test_stages_of_a_pipeline_work_on_different_requests() -> None:
    scheduler = make_scheduler(num_stages=2)
    for index in range(4):
        scheduler.add(make_request(index))

    first, second, third = (scheduler.schedule() for _ in range(3))
    scheduler.update(first, sample_all(first))
    fourth = scheduler.schedule()

    steps = (first, second, third, fourth)
    assert [[share.request_id for share in step.requests] for step in steps] == [
        [0, 1], [2, 3], [], [0, 1],
    ]  # fmt: skip
    assert [step.counts.num_steps_in_flight for step in steps] == [1, 2, 2, 2]


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


def test_offline_a_request_waits_until_the_blocks_suffice_for_its_answer() -> None:
    scheduler = make_scheduler(num_blocks=8, block_size=4, is_offline=True)
    for index in range(2):
        scheduler.add(make_request(index, num_prompt_tokens=4, max_tokens=20))

    steps = [run_step(scheduler) for _ in range(40)]

    assert not scheduler.has_unfinished
    assert sum(step.counts.num_preemptions for step in steps) == 0
    assert [len(step.requests) for step in steps[:10]] == [1] * 10


def test_offline_a_small_request_takes_the_blocks_that_do_not_suffice_for_a_large_one() -> None:
    scheduler = make_scheduler(num_blocks=9, block_size=4, is_offline=True)
    for index, num_prompt_tokens in enumerate((20, 18, 4, 2)):
        scheduler.add(make_request(index, num_prompt_tokens=num_prompt_tokens, max_tokens=4))

    assert [request_id for request_id, _ in shares_of(scheduler)] == [0, 2]


def test_offline_answers_that_ended_early_let_more_requests_run_together() -> None:
    scheduler = make_scheduler(
        num_blocks=16, block_size=4, is_offline=True, eos_token_ids=frozenset({2})
    )
    for index in range(8):
        scheduler.add(make_request(index, num_prompt_tokens=4, max_tokens=40))
    steps = [run_step(scheduler) for _ in range(5)]
    last = scheduler.schedule()
    scheduler.update(last, sample_all(last, 2))

    assert [len(step.requests) for step in steps] == [1] * 5
    assert len(scheduler.schedule().requests) == 5


def test_offline_prompts_that_share_a_prefix_follow_each_other() -> None:
    scheduler = make_scheduler(
        block_size=4, max_num_seqs=1, enable_prefix_caching=True, is_offline=True
    )
    for index, (group, length) in enumerate([(1, 20), (2, 19), (1, 12), (2, 18), (1, 16)]):
        scheduler.add(make_request(index, prompt=[group] * 8 + [index] * length, max_tokens=1))

    assert [shares_of(scheduler)[0][0] for _ in range(5)] == [0, 2, 4, 1, 3]


def test_offline_the_longest_goes_first_where_no_other_finds_more_of_its_prompt() -> None:
    scheduler = make_scheduler(
        block_size=4, max_num_seqs=1, enable_prefix_caching=True, is_offline=True
    )
    for index, length in enumerate((5, 30, 8, 19)):
        scheduler.add(make_request(index, prompt=[7] * 8 + [index] * length, max_tokens=1))

    assert [shares_of(scheduler)[0][0] for _ in range(4)] == [1, 3, 2, 0]


class Load(TypedDict):
    lengths: list[tuple[int, int, int, int]]
    num_blocks: int
    token_budget: int
    enable_prefix_caching: bool
    is_offline: bool
    foresees_blocks: bool
    group_share: float
    spare_blocks_ratio: float
    prefill_chunk_size: int | None
    num_steps_in_flight: int
    num_stages: int


LOADS = st.fixed_dictionaries(
    {
        "lengths": st.lists(
            # prompt length, answer length, by how much it may be longer, and which of three texts
            # the prompt is cut from
            st.tuples(st.integers(1, 40), st.integers(1, 24), st.integers(0, 8), st.integers(0, 2)),
            min_size=1,
            max_size=12,
        ),
        "num_blocks": st.integers(18, 24),
        "token_budget": st.integers(4, 60),
        "enable_prefix_caching": st.booleans(),
        "is_offline": st.booleans(),
        "foresees_blocks": st.booleans(),
        "group_share": st.sampled_from([0.0, 0.5, 1.0]),
        "spare_blocks_ratio": st.sampled_from([0.0, 0.2, 0.9]),
        "prefill_chunk_size": st.sampled_from([None, 3]),
        "num_steps_in_flight": st.integers(1, 4),
        "num_stages": st.integers(1, 3),
    }
)


@settings(max_examples=150)
@given(load=LOADS)
def test_every_request_finishes_and_no_block_is_lost(load: Load) -> None:
    clock = FakeClock()
    scheduler = make_scheduler(
        num_blocks=load["num_blocks"],
        block_size=4,
        max_num_seqs=4,
        token_budget=load["token_budget"],
        enable_prefix_caching=load["enable_prefix_caching"],
        strategy=strategy_of(load),
        eos_token_ids=frozenset({EOS}),
        spare_blocks_ratio=load["spare_blocks_ratio"],
        prefill_chunk_size=load["prefill_chunk_size"],
        num_stages=load["num_stages"],
        num_steps_in_flight=load["num_steps_in_flight"],
        clock=clock,
    )
    requests = [
        make_request(index, prompt=[text] * prompt, max_tokens=answer + more, params=PENALTIES)
        for index, (prompt, answer, more, text) in enumerate(load["lengths"])
    ]
    for request in requests:
        scheduler.add(request)

    totals = run_to_end(scheduler, requests, load, clock)

    assert [r.output_token_ids for r in requests] == [
        [token_at(r, r.num_prompt_tokens + place, load) for place in range(answer)]
        for r, (_, answer, _, _) in zip(requests, load["lengths"], strict=True)
    ]
    assert scheduler.kv_cache_usage == 0
    assert totals["prefill"] + totals["cached"] == sum(r.num_prompt_tokens for r in requests)
    assert totals["cached"] == sum(r.costs.num_cached_tokens for r in requests)
    num_decode_tokens = sum(r.num_output_tokens - 1 for r in requests)
    num_ahead = 0 if load["num_steps_in_flight"] == 1 else totals["decode"] - num_decode_tokens
    assert 0 <= num_ahead <= len(requests) * load["num_steps_in_flight"]
    assert totals["decode"] == num_decode_tokens + num_ahead
    assert totals["recomputed"] == sum(r.costs.num_recomputed_tokens for r in requests)
    assert totals["preemptions"] == sum(r.costs.num_preemptions for r in requests)
    for request in requests:
        costs = request.costs
        assert costs.first_token_time is not None
        assert costs.finish_time is not None
        assert costs.start_time <= costs.first_token_time <= costs.finish_time


def strategy_of(load: Load) -> Strategy:
    return Strategy(
        waiting=OfflineQueue() if load["is_offline"] else FifoQueue(),
        lengths=AnswerLengths() if load["foresees_blocks"] else None,
        gate=AdmissionGate(load["group_share"]),
    )


def token_at(request: Request, position: int, load: Load) -> int:
    """What the pretended model says at a position of a request: at the end of the answer, EOS."""
    if position < request.num_prompt_tokens:
        return request.prompt_token_ids[position]
    _, num_answer_tokens, num_more_tokens, _ = load["lengths"][request.request_id]
    if num_more_tokens and position == request.num_prompt_tokens + num_answer_tokens - 1:
        return EOS
    return 1000 + 37 * request.request_id + position


@dataclass
class KnownTokens:
    """The tokens of a step whose device is never late."""

    known: list[int]

    @property
    def token_ids(self) -> torch.Tensor:
        return torch.tensor(self.known, dtype=torch.int64)

    def wait_for_token_ids(self) -> list[int]:
        return self.known


def run_model(
    step: SchedulerOutput, requests: list[Request], load: Load, pending: PendingTokens
) -> StepResult:
    """Checks that the model sees the right tokens, and answers."""
    input_ids = torch.tensor([token for share in step.requests for token in share.token_ids])
    pending.fill_in(step, input_ids)
    seen = iter(input_ids.tolist())
    sampling = iter(pending.sampling(step))
    token_ids = {}
    for share in step.requests:
        request = requests[share.request_id]
        stop = share.start_position + share.num_tokens
        for position in range(share.start_position, stop):
            assert next(seen) == token_at(request, position, load)
        if share.sampling is not None:
            token_ids[share.request_id] = token_at(request, stop, load)
            known = next(sampling)
            assert known.position == stop - request.num_prompt_tokens
            assert list(known.output_token_ids) == [
                token_at(request, position, load)
                for position in range(request.num_prompt_tokens, stop)
            ]
    pending.remember(step, KnownTokens(list(token_ids.values())))
    return StepResult(token_ids=token_ids)


def check_step(step: SchedulerOutput, load: Load) -> None:
    counts = step.counts
    assert 0 < step.num_tokens <= load["token_budget"]
    num_parts = min(load["num_stages"], load["num_steps_in_flight"])
    assert len(step.requests) <= -(-min(len(load["lengths"]), 4) // num_parts)
    assert counts.num_used_blocks + counts.num_free_blocks == load["num_blocks"]
    assert step.num_tokens == (
        counts.num_prefill_tokens + counts.num_decode_tokens + counts.num_recomputed_tokens
    )
    for share in step.requests:
        assert share.num_tokens <= (load["prefill_chunk_size"] or load["token_budget"])
        assert len(share.block_ids) * 4 >= share.start_position + share.num_tokens


def run_to_end(
    scheduler: Scheduler, requests: list[Request], load: Load, clock: FakeClock
) -> dict[str, int]:
    totals = dict.fromkeys(("prefill", "cached", "decode", "recomputed", "preemptions"), 0)
    peak_blocks = dict.fromkeys(range(len(requests)), 0)
    pending = PendingTokens(load["num_steps_in_flight"])
    in_flight: deque[tuple[SchedulerOutput, StepResult]] = deque()
    while scheduler.has_unfinished:
        while len(in_flight) < load["num_steps_in_flight"]:
            step = scheduler.schedule()
            scheduler.check_integrity()
            if not step.requests:
                break
            check_step(step, load)
            in_flight.append((step, run_model(step, requests, load, pending)))
            counts = step.counts
            assert counts.num_steps_in_flight == len(in_flight)
            totals["prefill"] += counts.num_prefill_tokens
            totals["cached"] += counts.num_cached_tokens
            totals["decode"] += counts.num_decode_tokens
            totals["recomputed"] += counts.num_recomputed_tokens
            totals["preemptions"] += counts.num_preemptions
            for share in step.requests:
                request_id = share.request_id
                peak_blocks[request_id] = max(peak_blocks[request_id], len(share.block_ids))
        clock.now += 1.0
        scheduler.update(*in_flight.popleft())
        scheduler.check_integrity()
    while in_flight:  # computed ahead of the end of an answer
        assert scheduler.update(*in_flight.popleft()) == []
    scheduler.check_integrity()
    assert [request.costs.peak_blocks for request in requests] == list(peak_blocks.values())
    return totals
