"""Steps that failed, in whole or in part: nothing is lost, and nothing wrong is found again."""

from __future__ import annotations

import dataclasses

from hypothesis import given, settings
from hypothesis import strategies as st

from furiosa_llm.errors import NonFiniteLogitsError, PromptFailedError, RequestError
from furiosa_llm.request import FinishReason, Request
from furiosa_llm.sampling_params import SamplingParams
from furiosa_llm.scheduler_output import SchedulerOutput
from furiosa_llm.scheduling.scheduler import Scheduler
from tests.factories import FakeClock, make_request, make_scheduler, run_step, sample_all

BROKEN = PromptFailedError("broken")
NOT_FINITE = NonFiniteLogitsError("not finite")


def fail(scheduler: Scheduler, step: SchedulerOutput, **failures: RequestError) -> list[Request]:
    """Books a step of which requests fail, given as r0, r1 and so on."""
    by_id = {int(name[1:]): error for name, error in failures.items()}
    result = dataclasses.replace(sample_all(step).without(by_id), failures=by_id)
    return scheduler.update(step, scheduler.screen(step, result))


def test_a_failing_request_ends_with_its_error_and_the_others_have_a_token() -> None:
    scheduler = make_scheduler()
    requests = [make_request(index) for index in range(3)]
    for request in requests:
        scheduler.add(request)

    changed = fail(scheduler, scheduler.schedule(), r1=BROKEN)

    assert changed == requests
    assert (requests[1].finish_reason, requests[1].error) == (FinishReason.ERROR, BROKEN)
    assert [request.num_output_tokens for request in requests] == [1, 0, 1]
    scheduler.check_integrity()


def test_who_reads_what_a_failing_request_was_to_write_is_computed_again() -> None:
    scheduler = make_scheduler(enable_prefix_caching=True)
    writer, reader = (make_request(index, num_prompt_tokens=20) for index in range(2))
    scheduler.add(writer)
    scheduler.add(reader)

    changed = fail(scheduler, scheduler.schedule(), r0=BROKEN)
    again = scheduler.schedule()

    assert changed == [writer]
    assert [(s.request_id, s.start_position, s.num_tokens) for s in again.requests] == [(1, 0, 20)]
    assert reader.costs.num_preemptions == 1


def test_scores_that_are_not_finite_are_blamed_on_a_shared_prefix_once() -> None:
    scheduler = make_scheduler(enable_prefix_caching=True)
    scheduler.add(make_request(0, num_prompt_tokens=20))
    run_step(scheduler)
    reader = make_request(1, num_prompt_tokens=20)
    scheduler.add(reader)

    first = fail(scheduler, scheduler.schedule(), r1=NOT_FINITE)
    step = scheduler.schedule()
    (share,) = (share for share in step.requests if share.request_id == 1)
    second = fail(scheduler, step, r1=NOT_FINITE)

    assert reader not in first
    assert share.start_position == 0
    assert reader in second
    assert reader.error is NOT_FINITE


def test_a_request_to_blame_is_not_tried_again_for_its_shared_prefix() -> None:
    scheduler = make_scheduler(enable_prefix_caching=True)
    scheduler.add(make_request(0, num_prompt_tokens=20))
    run_step(scheduler)
    reader = make_request(1, num_prompt_tokens=20)
    scheduler.add(reader)

    assert reader in fail(scheduler, scheduler.schedule(), r1=BROKEN)


def test_a_dropped_step_is_scheduled_again_from_the_start() -> None:
    scheduler = make_scheduler(enable_prefix_caching=True)
    request = make_request(num_prompt_tokens=20)
    scheduler.add(request)
    run_step(scheduler)
    steps = [scheduler.schedule(), scheduler.schedule()]

    for step in steps:
        scheduler.drop(step)
    (share,) = scheduler.schedule().requests

    assert share.token_ids == (*range(100, 120), 7)
    assert share.start_position == 0
    scheduler.check_integrity()


@settings(max_examples=100)
@given(
    length=st.integers(2, 60),
    num_in_flight=st.integers(1, 3),
    are_dropped=st.lists(st.booleans(), max_size=12),
)
def test_each_token_of_a_prompt_is_scored_once_however_often_it_is_computed(
    length: int, num_in_flight: int, are_dropped: list[bool]
) -> None:
    scheduler = make_scheduler(token_budget=16, num_steps_in_flight=num_in_flight)
    params = SamplingParams(max_tokens=1, temperature=0, prompt_logprobs=0)
    scheduler.add(make_request(num_prompt_tokens=length, max_tokens=1, params=params))
    steps: list[SchedulerOutput] = []
    scored: list[int] = []
    while scheduler.has_unfinished:
        while len(steps) < num_in_flight and (step := scheduler.schedule()).requests:
            steps.append(step)
        if are_dropped and are_dropped.pop(0):
            while steps:
                scheduler.drop(steps.pop(0))
            continue
        step = steps.pop(0)
        scheduler.update(step, sample_all(step))
        scored += [
            token for share in step.requests if share.scoring for token in share.scoring.token_ids
        ]

    assert scored == [*range(101, 100 + length)]


def test_a_request_is_overdue_once_and_not_before_its_time() -> None:
    clock = FakeClock()
    scheduler = make_scheduler(max_num_seqs=1, clock=clock)
    requests = [make_request(index, max_tokens=9, timeout_seconds=2.0) for index in range(2)]
    for request in requests:
        scheduler.add(request)

    found = []
    for _ in range(4):
        run_step(scheduler)
        found.append(scheduler.take_overdue())
        clock.now += 1

    assert found == [[], [], [requests[0]], []]  # the other one has not started


@settings(max_examples=200)
@given(
    lengths=st.lists(st.tuples(st.integers(1, 40), st.integers(1, 12)), min_size=1, max_size=12),
    num_blocks=st.integers(4, 12),
    num_in_flight=st.integers(1, 3),
    is_offline=st.booleans(),
    fates=st.lists(st.sampled_from(["ok", "ok", "fail", "nan", "drop"]), min_size=1, max_size=30),
)
def test_whatever_fails_every_request_ends_once_and_no_block_is_lost(
    lengths: list[tuple[int, int]],
    num_blocks: int,
    num_in_flight: int,
    is_offline: bool,
    fates: list[str],
) -> None:
    scheduler = make_scheduler(
        num_blocks=num_blocks,
        enable_prefix_caching=True,
        is_offline=is_offline,
        token_budget=32,
        num_steps_in_flight=num_in_flight,
    )
    requests = [
        make_request(index, num_prompt_tokens=length, max_tokens=max_tokens)
        for index, (length, max_tokens) in enumerate(lengths)
    ]
    for request in requests:
        scheduler.add(request)
    steps: list[SchedulerOutput] = []
    ended: list[Request] = []
    turn = 0
    while scheduler.has_unfinished:
        while len(steps) < num_in_flight and (step := scheduler.schedule()).requests:
            steps.append(step)
        step = steps.pop(0)
        fate = fates[turn] if turn < len(fates) else "ok"
        turn += 1
        if fate == "drop":
            scheduler.drop(step)
        elif fate == "ok":
            ended += [r for r in scheduler.update(step, sample_all(step)) if r.is_finished]
        else:
            share = step.requests[turn % len(step.requests)]
            error = BROKEN if fate == "fail" else NOT_FINITE
            changed = fail(scheduler, step, **{f"r{share.request_id}": error})
            ended += [request for request in changed if request.is_finished]
        if fate != "ok":
            while steps:
                scheduler.drop(steps.pop(0))
        scheduler.check_integrity()

    assert sorted(request.request_id for request in ended) == [*range(len(requests))]
    for request in requests:
        assert request.error is not None or request.num_output_tokens == request.max_tokens
    assert turn < 2000
