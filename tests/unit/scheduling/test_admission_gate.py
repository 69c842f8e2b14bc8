from __future__ import annotations

import random

from furiosa_llm.request import Request
from furiosa_llm.sampling_params import SamplingParams
from furiosa_llm.scheduling.admission_gate import AdmissionGate
from furiosa_llm.scheduling.scheduler import Scheduler
from furiosa_llm.scheduling.waiting_room import Strategy
from tests.factories import make_scheduler, sample_all


def add_all(scheduler: Scheduler, lengths: list[int]) -> None:
    for number, length in enumerate(lengths):
        scheduler.add(
            Request(
                request_id=number,
                prompt_token_ids=[1000 + number, 2],
                sampling_params=SamplingParams(temperature=0, max_tokens=length, ignore_eos=True),
                max_tokens=length,
            )
        )


def kinds_of_steps(scheduler: Scheduler) -> list[tuple[int, bool]]:
    """Of each step how many requests it had, and whether it read a prompt."""
    steps = []
    while scheduler.has_unfinished:
        step = scheduler.schedule()
        scheduler.update(step, sample_all(step))
        steps.append((len(step.requests), step.counts.num_prefill_tokens > 0))
    return steps


def make_offline(*, favours_decodes: bool) -> Scheduler:
    strategy = Strategy.of(is_offline=True, favours_decodes=favours_decodes)
    return make_scheduler(
        num_blocks=2000, max_num_seqs=64, token_budget=512, num_steps_in_flight=1, strategy=strategy
    )


def test_requests_start_in_groups_where_steps_without_prompts_are_favoured() -> None:
    draw = random.Random(0)
    lengths = [draw.randint(16, 128) for _ in range(256)]
    num_reading, num_steps = {}, {}
    for favours_decodes in (False, True):
        scheduler = make_offline(favours_decodes=favours_decodes)
        add_all(scheduler, lengths)
        steps = kinds_of_steps(scheduler)
        num_reading[favours_decodes] = sum(reads for _, reads in steps)
        num_steps[favours_decodes] = len(steps)

    assert num_reading[True] <= 0.7 * num_reading[False]
    assert num_steps[True] <= 1.1 * num_steps[False]


def test_a_request_that_comes_while_there_is_room_starts_at_once() -> None:
    scheduler = make_offline(favours_decodes=True)
    add_all(scheduler, [20] * 8)
    scheduler.update(step := scheduler.schedule(), sample_all(step))

    scheduler.add(
        Request(
            request_id=8,
            prompt_token_ids=[7, 8],
            sampling_params=SamplingParams(temperature=0, max_tokens=4),
            max_tokens=4,
        )
    )

    assert len(scheduler.schedule().requests) == 9


def test_a_gate_opens_once_a_share_has_ended_or_nothing_runs() -> None:
    gate = AdmissionGate(0.25)
    assert gate.is_open(num_running=8)

    gate.close(num_running=8)
    gate.note_end()
    assert not gate.is_open(num_running=7)
    assert gate.is_open(num_running=0)
    gate.note_end()
    assert gate.is_open(num_running=6)
