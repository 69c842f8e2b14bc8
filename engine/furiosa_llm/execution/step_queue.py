"""Steps that wait for the device, in the order in which they were scheduled."""

from __future__ import annotations

from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import NoReturn, Protocol, TypeAlias

from furiosa_llm.scheduler_output import SchedulerOutput, StepResult


class RunningStep(Protocol):
    """A step that a runner has started."""

    def result(self) -> StepResult:
        """Waits for the step, and returns what it brings or raises what the device raised."""


@dataclass(frozen=True, slots=True)
class FinishedStep:
    """A step that was done when its launch returned."""

    brought: StepResult

    def result(self) -> StepResult:
        """See `RunningStep`."""
        return self.brought


@dataclass(frozen=True, slots=True)
class _FailedStep:
    """A step whose launch failed."""

    error: Exception

    def result(self) -> NoReturn:
        """Raises what the launch raised."""
        raise self.error


class StepRunner(Protocol):
    """What runs steps, one after the other. Tests replace it with a few lines."""

    def launch(self, step: SchedulerOutput) -> RunningStep:
        """Starts one forward pass and the choice of the token of each request that is due one.

        The results of the steps before need not have been waited for.
        """


def queue_for(runner: StepRunner, num_steps_in_flight: int, *, device_type: str) -> StepQueue:
    """Returns the queue for a runner.

    Args:
        runner: What runs the steps.
        num_steps_in_flight: Steps that are submitted before the first is collected.
        device_type: As torch names it. On a CPU the launch of a step returns when it is done, so
            that several in flight take a thread; a GPU runs a step while the host goes on.
    """
    if num_steps_in_flight == 1:
        return SerialExecutor(runner)
    return ThreadedExecutor(runner) if device_type == "cpu" else LaunchingExecutor(runner)


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
        return self._runner.launch(self._steps.popleft()).result()

    def close(self) -> None:
        """Ends nothing: there is no thread."""


class LaunchingExecutor:
    """Launches a step when it is submitted, on a device that does not keep the host waiting."""

    def __init__(self, runner: StepRunner) -> None:
        self._runner = runner
        self._steps: deque[RunningStep] = deque()

    def submit(self, step: SchedulerOutput) -> None:
        """Launches a step; `collect` tells of a failure."""
        try:
            running = self._runner.launch(step)
        except Exception as error:  # noqa: BLE001 - a model may raise anything
            running = _FailedStep(error)
        self._steps.append(running)

    def collect(self) -> StepResult:
        """Waits for the oldest step and returns its result."""
        return self._steps.popleft().result()

    def close(self) -> None:
        """Ends nothing: there is no thread."""


class ThreadedExecutor:
    """Launches steps in a thread of its own, while the steps before run and are waited for."""

    def __init__(self, runner: StepRunner) -> None:
        self._runner = runner
        self._thread = ThreadPoolExecutor(1, "device")
        self._launches: deque[Future[RunningStep]] = deque()

    def submit(self, step: SchedulerOutput) -> None:
        """Queues a step, which is launched as soon as those before it are."""
        self._launches.append(self._thread.submit(self._runner.launch, step))

    def collect(self) -> StepResult:
        """Waits for the oldest step and returns its result."""
        running = self._launches.popleft().result()
        return running.result()

    def close(self) -> None:
        """Drops the steps that have not begun and ends the thread."""
        self._thread.shutdown(wait=True, cancel_futures=True)


StepQueue: TypeAlias = SerialExecutor | LaunchingExecutor | ThreadedExecutor
