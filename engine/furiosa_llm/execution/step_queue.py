"""Steps that wait for the device, in the order in which they were scheduled."""

from __future__ import annotations

from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Protocol

from furiosa_llm.scheduler_output import SchedulerOutput, StepResult


class StepRunner(Protocol):
    """What runs a step. Tests replace it with a few lines."""

    def execute(self, step: SchedulerOutput) -> StepResult:
        """Runs one forward pass and chooses the token of each request that is due one."""


def queue_for(runner: StepRunner, num_steps_in_flight: int) -> SerialExecutor | ThreadedExecutor:
    """Returns the queue for a runner: with a thread where more than one step is in flight."""
    return SerialExecutor(runner) if num_steps_in_flight == 1 else ThreadedExecutor(runner)


class SerialExecutor:
    """Runs a step when its result is asked for."""

    def __init__(self, runner: StepRunner) -> None:
        self._runner = runner
        self._steps: deque[SchedulerOutput] = deque()

    def submit(self, step: SchedulerOutput) -> None:
        """Queues a step."""
        self._steps.append(step)

    def collect(self) -> StepResult:
        """Returns the result of the oldest step."""
        return self._runner.execute(self._steps.popleft())

    def close(self) -> None:
        """Ends nothing: there is no thread."""


class ThreadedExecutor:
    """Runs steps in a thread of its own, so that the next one can be prepared meanwhile."""

    def __init__(self, runner: StepRunner) -> None:
        self._runner = runner
        self._thread = ThreadPoolExecutor(1, "device")
        self._results: deque[Future[StepResult]] = deque()

    def submit(self, step: SchedulerOutput) -> None:
        """Queues a step, which runs as soon as those before it are done."""
        self._results.append(self._thread.submit(self._runner.execute, step))

    def collect(self) -> StepResult:
        """Waits for the oldest step and returns its result."""
        return self._results.popleft().result()

    def close(self) -> None:
        """Drops the steps that have not begun and ends the thread."""
        self._thread.shutdown(wait=True, cancel_futures=True)
