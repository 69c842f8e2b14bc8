"""A device that is done with a step only when the next one has been launched."""

from __future__ import annotations

import threading
from dataclasses import dataclass, field

from furiosa_llm.scheduler_output import SchedulerOutput, StepResult
from furiosa_llm.steps_in_flight import StepExecutor

_MAX_SECONDS = 20.0


class LateDevice:
    """Times the steps of a runner, and lets nobody have one that is not the last in flight.

    Whoever waits for a step before the forward pass of the next one is launched waits in vain, and
    whoever reads what a step has computed reads what the next one has left of it.
    """

    def __init__(self) -> None:
        self.num_asked = 0  # times that somebody waited
        self.num_waits = 0  # for steps that were not the last ones in flight
        self.is_stuck = False  # a wait was in vain
        self._changed = threading.Condition()
        self._num_submitted = 0
        self._num_started = 0
        self._num_launched = 0

    def over(self, executor: StepExecutor) -> StepExecutor:
        """Takes note of the steps that go to an executor."""
        return _Submissions(executor, self)

    def start_watch(self) -> LateWatch:
        self._num_started += 1
        return LateWatch(self, self._num_started)

    def note_submission(self) -> None:
        self._num_submitted += 1

    def note_forward_pass(self) -> None:
        with self._changed:
            self._num_launched += 1
            self._changed.notify_all()

    def wait_for(self, number: int) -> None:
        """Waits for the step of this number, from 1."""
        self.num_asked += 1
        if self._num_submitted > number:
            with self._changed:
                self.num_waits += 1
                if not self._changed.wait_for(
                    lambda: self._num_launched > number, 0 if self.is_stuck else _MAX_SECONDS
                ):
                    self.is_stuck = True


@dataclass
class LateWatch:
    device: LateDevice
    number: int
    laps: list[float] = field(default_factory=list)

    def lap(self) -> None:
        self.laps.append(0.0)
        if len(self.laps) == 1:
            self.device.note_forward_pass()

    def wait(self) -> list[float]:
        self.device.wait_for(self.number)
        return self.laps


@dataclass
class _Submissions:
    executor: StepExecutor
    device: LateDevice

    def submit(self, step: SchedulerOutput) -> None:
        self.device.note_submission()
        self.executor.submit(step)

    def collect(self) -> StepResult:
        return self.executor.collect()

    def close(self) -> None:
        self.executor.close()
