"""Blocks that other requests find again: by the tokens that they hold, and only while they do."""

from __future__ import annotations

import dataclasses

from furiosa_llm.errors import NonFiniteLogitsError, PromptFailedError, RequestError
from furiosa_llm.request import Request
from furiosa_llm.scheduler_output import SchedulerOutput, StepResult
from furiosa_llm.scheduling.scheduler import Scheduler
from tests.factories import make_request, make_scheduler, run_step, sample_all


def run_out_of_blocks_ahead(scheduler: Scheduler, requests: list[Request]) -> None:
    """Lets the second of two requests give way while its tokens are being chosen."""
    for request in requests:
        scheduler.add(request)
    steps = [scheduler.schedule() for _ in range(4)]  # the second one fills a block of each
    for step in steps:
        token_ids = {share.request_id: 8 + share.request_id for share in step.requests}
        scheduler.update(step, StepResult(token_ids=token_ids))
    assert requests[1].costs.num_preemptions == 1


def fail(scheduler: Scheduler, step: SchedulerOutput, error: RequestError) -> list[Request]:
    """Books a step that the request 0 fails of."""
    result = dataclasses.replace(sample_all(step).without({0}), failures={0: error})
    return scheduler.update(step, scheduler.screen(step, result))


def test_a_block_is_not_found_by_a_token_that_was_still_being_chosen() -> None:
    scheduler = make_scheduler(num_blocks=3, block_size=4, enable_prefix_caching=True)
    requests = [make_request(index, num_prompt_tokens=3, max_tokens=6) for index in range(2)]
    run_out_of_blocks_ahead(scheduler, requests)

    steps = []
    while scheduler.has_unfinished:
        steps.append(run_step(scheduler))

    again = [share for step in steps for share in step.requests if share.request_id == 1]
    assert again[0].start_position == 0  # the other one went on with 8, it with 9


def test_who_gives_way_with_tokens_being_chosen_is_found_by_what_they_become() -> None:
    scheduler = make_scheduler(num_blocks=3, block_size=4, enable_prefix_caching=True)
    requests = [make_request(index, prompt=[index] * 3, max_tokens=6) for index in range(2)]
    run_out_of_blocks_ahead(scheduler, requests)
    while scheduler.has_unfinished:
        run_step(scheduler)

    scheduler.add(make_request(2, prompt=[1, 1, 1, 9, 5], max_tokens=1))

    assert run_step(scheduler).requests[0].start_position == 4


def test_a_failing_request_leaves_no_block_that_another_finds() -> None:
    scheduler = make_scheduler(enable_prefix_caching=True)
    scheduler.add(make_request(0, num_prompt_tokens=20))
    fail(scheduler, scheduler.schedule(), NonFiniteLogitsError("not finite"))
    scheduler.add(make_request(1, num_prompt_tokens=20))

    (share,) = run_step(scheduler).requests

    assert (share.request_id, share.num_tokens) == (1, 20)


def test_who_reads_a_block_that_a_failing_request_was_to_fill_up_is_computed_again() -> None:
    scheduler = make_scheduler(enable_prefix_caching=True, prefill_chunk_size=10)
    writer, reader = (make_request(index, num_prompt_tokens=40) for index in range(2))
    scheduler.add(writer)
    run_step(scheduler)  # tokens 0 to 9 of the first block
    scheduler.add(reader)

    changed = fail(scheduler, scheduler.schedule(), PromptFailedError("broken"))
    again = scheduler.schedule()

    assert changed == [writer]
    assert [(share.request_id, share.start_position) for share in again.requests] == [(1, 0)]
