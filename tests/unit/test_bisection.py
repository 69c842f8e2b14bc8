from __future__ import annotations

from collections.abc import Iterable

import pytest

from furiosa_llm.bisection import Bisection
from furiosa_llm.errors import EngineError, PromptFailedError
from furiosa_llm.request import Request
from furiosa_llm.scheduler_output import SchedulerOutput, StepResult
from tests.factories import make_request, make_scheduler, run_step, sample_all


class Device:
    """Runs steps, fails of some requests, and counts."""

    def __init__(self, culprits: Iterable[int] = (), *, num_steps_of_life: int = 10**6) -> None:
        self.culprits = set(culprits)
        self.num_steps_of_life = num_steps_of_life
        self.seen: list[list[int]] = []

    def run(self, step: SchedulerOutput) -> StepResult:
        ids = [share.request_id for share in step.requests]
        self.seen.append(ids)
        if len(self.seen) > self.num_steps_of_life:
            raise RuntimeError("gone")
        if self.culprits.intersection(ids):
            raise KeyError("no\nsuch token")
        return sample_all(step)


def make_step(requests: Iterable[Request]) -> SchedulerOutput:
    scheduler = make_scheduler(
        num_blocks=512, max_num_seqs=64, token_budget=4096, enable_prefix_caching=True
    )
    for request in requests:
        scheduler.add(request)
    return scheduler.schedule()


def bisect(step: SchedulerOutput, device: Device) -> StepResult:
    bisection = Bisection(step, device.run, block_size=16, harmless_token_id=2)
    return bisection.result(KeyError("no\nsuch token"))


def test_one_culprit_of_64_is_found_in_13_steps() -> None:
    step = make_step(make_request(index) for index in range(64))
    device = Device([37])

    result = bisect(step, device)

    assert set(result.failures) == {37}
    assert set(result.token_ids) == {*range(64)} - {37}
    assert len(device.seen) == 13  # two halves, six times, and the harmless one
    assert isinstance(result.failures[37], PromptFailedError)
    assert "'no\\nsuch token'" in str(result.failures[37])


def test_a_step_that_fails_as_a_whole_only_has_no_culprit() -> None:
    step = make_step(make_request(index) for index in range(8))

    result = bisect(step, Device())

    assert (set(result.token_ids), result.failures) == ({*range(8)}, {})


def test_who_shares_a_block_with_a_culprit_is_not_run() -> None:
    alike = [make_request(index, num_prompt_tokens=20) for index in range(3)]
    other = make_request(3, prompt=[9] * 20)
    device = Device([0])

    result = bisect(make_step([*alike, other]), device)

    assert set(result.failures) == {0}
    assert set(result.token_ids) == {3}
    assert [1] not in device.seen


def test_who_reads_a_block_that_a_culprit_was_to_fill_up_is_not_run() -> None:
    scheduler = make_scheduler(enable_prefix_caching=True, prefill_chunk_size=10)
    scheduler.add(make_request(0, num_prompt_tokens=40))
    run_step(scheduler)  # tokens 0 to 9 of the first block
    for index in (1, 2):
        scheduler.add(make_request(index, num_prompt_tokens=40))
    device = Device([0])

    bisect(scheduler.schedule(), device)

    assert device.seen == [[0], [-1]]


@pytest.mark.parametrize("num_steps_of_life", [0, 1])
def test_an_engine_that_runs_nothing_any_more_is_told_at_once(num_steps_of_life: int) -> None:
    device = Device(num_steps_of_life=num_steps_of_life)

    with pytest.raises(EngineError, match="gone"):
        bisect(make_step(make_request(index) for index in range(64)), device)

    assert len(device.seen) < 20
