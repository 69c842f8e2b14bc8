from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import pytest

from furiosa_llm.execution.step_queue import (
    FinishedStep,
    LaunchingExecutor,
    SerialExecutor,
    StepQueue,
    ThreadedExecutor,
    queue_for,
)
from furiosa_llm.scheduler_output import NO_COUNTS, SchedulerOutput, StepResult


def numbered(number: int) -> SchedulerOutput:
    return SchedulerOutput(requests=(), counts=dataclasses.replace(NO_COUNTS, num_running=number))


class Runner:
    """Brings a step's number as a token, and fails of step 1."""

    def __init__(self) -> None:
        self.launched: list[int] = []

    def launch(self, step: SchedulerOutput) -> FinishedStep:
        number = step.counts.num_running
        self.launched.append(number)
        if number == 1:
            raise RuntimeError("it fails")
        return FinishedStep(StepResult(token_ids={0: number}))


@pytest.fixture(params=[(1, "cpu"), (2, "cpu"), (1, "cuda"), (2, "cuda")], ids=str)
def queue(request: pytest.FixtureRequest) -> Iterator[StepQueue]:
    num_steps_in_flight, device_type = request.param
    queue = queue_for(Runner(), num_steps_in_flight, device_type=device_type)
    yield queue
    queue.close()


def test_a_queue_brings_steps_in_order_and_a_failure_in_its_place(queue: StepQueue) -> None:
    for number in range(3):
        queue.submit(numbered(number))

    assert queue.collect().token_ids == {0: 0}
    with pytest.raises(RuntimeError, match="it fails"):
        queue.collect()
    assert queue.collect().token_ids == {0: 2}


def test_only_what_would_keep_the_host_waiting_has_a_thread() -> None:
    kinds = {
        (number, device_type): type(queue_for(Runner(), number, device_type=device_type))
        for number in (1, 2)
        for device_type in ("cpu", "cuda")
    }

    assert kinds == {
        (1, "cpu"): SerialExecutor,
        (1, "cuda"): SerialExecutor,
        (2, "cpu"): ThreadedExecutor,
        (2, "cuda"): LaunchingExecutor,
    }


def test_a_step_is_launched_before_the_one_ahead_of_it_is_collected() -> None:
    runner = Runner()
    queue = LaunchingExecutor(runner)

    queue.submit(numbered(0))
    queue.submit(numbered(2))

    assert runner.launched == [0, 2]
