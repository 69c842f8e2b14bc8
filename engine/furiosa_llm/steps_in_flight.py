"""The steps between a scheduler and what runs them, and what is made of one that fails."""

from __future__ import annotations

import contextlib
import logging
import time
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Protocol

from furiosa_llm.bisection import Bisection, reason_of
from furiosa_llm.engine_limits import EngineLimits
from furiosa_llm.errors import EngineError
from furiosa_llm.scheduler_output import SchedulerOutput, StepResult
from furiosa_llm.scheduling.scheduler import Scheduler

_logger = logging.getLogger(__name__)


class StepExecutor(Protocol):
    """What runs the steps, in the order in which they are submitted."""

    def submit(self, step: SchedulerOutput) -> None:
        """Queues a step."""

    def collect(self) -> StepResult:
        """Waits for the oldest step and returns its result, or raises what the model raised.

        An EngineError says that no other step will run, either.
        """

    def close(self) -> None:
        """Ends what runs the steps."""


@dataclass(frozen=True, slots=True)
class CollectedStep:
    """A step and what it brought."""

    step: SchedulerOutput
    result: StepResult
    schedule_seconds: float


@dataclass(frozen=True, slots=True)
class _StepInFlight:
    step: SchedulerOutput
    schedule_seconds: float


class StepsInFlight:
    """Keeps up to `npu_queue_limit` steps with the executor.

    A step that fails is run again in parts, which needs to be alone. Where others were in flight,
    all are scheduled again, and their requests are suspects: until each has a new token, steps run
    one at a time.
    """

    def __init__(self, executor: StepExecutor, scheduler: Scheduler, limits: EngineLimits) -> None:
        self._executor = executor
        self._scheduler = scheduler
        self._limits = limits
        self._steps: deque[_StepInFlight] = deque()
        self._suspects: set[int] = set()  # ids of requests
        self._num_collected = 0

    def submit(self) -> None:
        """Schedules as many steps as may be in flight and can be."""
        limit = 1 if self._suspects else self._limits.scheduler_config.npu_queue_limit
        while len(self._steps) < limit:
            start = time.monotonic()
            step = self._scheduler.schedule()
            if not step.requests:
                return
            self._steps.append(_StepInFlight(step, time.monotonic() - start))
            self._executor.submit(step)

    def collect(self) -> CollectedStep | None:
        """Waits for the oldest step; of one that fails, for the parts that do not.

        Returns:
            What it brought; None if there is no step, or it has to be scheduled again.

        Raises:
            EngineError: The model can run no step any more.
        """
        if not self._steps:
            return None
        oldest = self._steps.popleft()
        result = self._collect(oldest.step)
        if result is None:
            return None
        self._num_collected += 1
        return CollectedStep(oldest.step, result, oldest.schedule_seconds)

    def drop(self) -> None:
        """Waits for what the device still runs, and lets it be computed again."""
        for later in self._steps:
            with contextlib.suppress(Exception):  # it may build on a step that has failed
                self._executor.collect()
            self._scheduler.drop(later.step)
        self._steps.clear()

    def clear(self, request_ids: Iterable[int]) -> None:
        """Takes note of requests that have a new token or have ended: they are no suspects."""
        self._suspects.difference_update(request_ids)

    def close(self) -> None:
        """Ends the threads that run steps."""
        self._executor.close()

    def _collect(self, step: SchedulerOutput) -> StepResult | None:
        try:
            return self._executor.collect()
        except EngineError:
            raise
        except Exception as error:  # noqa: BLE001 - a model may raise anything
            is_alone = self._suspects or self._limits.scheduler_config.npu_queue_limit == 1
            if is_alone:
                return self._run_in_parts(step, error)
            self._suspects = {share.request_id for share in step.requests}
        self._scheduler.drop(step)
        self.drop()
        return None

    def _run_in_parts(self, step: SchedulerOutput, error: Exception) -> StepResult:
        number = self._num_collected
        _logger.debug("step %d failed and is run in parts: %s", number, reason_of(error))
        self._suspects.clear()
        bisection = Bisection(
            step,
            self._run,
            block_size=self._limits.cache_config.block_size,
            harmless_token_id=min(self._limits.model_info.eos_token_ids, default=0),
        )
        try:
            return bisection.result(error)
        except EngineError as reason:
            raise EngineError(f"step {number} failed: {reason}") from error

    def _run(self, step: SchedulerOutput) -> StepResult:
        self._executor.submit(step)
        return self._executor.collect()
