"""One replica's engine: a scheduler, a device, and the answers in the making."""

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
from furiosa_llm.errors import EngineError, RequestTimeoutError
from furiosa_llm.execution.random_draws import stream_seed
from furiosa_llm.output_processor import OutputProcessor
from furiosa_llm.outputs import RequestOutput, StepStats
from furiosa_llm.request import FinishReason, Request, RequestStatus, TokenizedPrompt
from furiosa_llm.scheduler_output import SchedulerOutput, StepResult
from furiosa_llm.scheduling.scheduler import Scheduler
from furiosa_llm.tokenization import Tokenizer

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
class _StepInFlight:
    step: SchedulerOutput
    schedule_seconds: float


class EngineCore:
    """Takes tokenized prompts in, runs steps, hands answers out.

    Up to `npu_queue_limit` steps are in flight: while the device runs one, the next is scheduled.

    A request that a step fails of, and one whose scores are not finite, ends with an error; the
    others go on. What depends on a failed step is computed again.
    """

    def __init__(
        self,
        *,
        executor: StepExecutor,
        tokenizer: Tokenizer,
        limits: EngineLimits,
        seed: int = 0,
        num_stages: int = 1,
        replica: int = 0,
        start_time: float | None = None,
    ) -> None:
        """Joins the parts.

        Args:
            executor: Runs the steps.
            tokenizer: Turns tokens into text.
            limits: What the engine is built for.
            seed: Of every draw.
            num_stages: Pipeline stages behind the executor.
            replica: Its number among others, for the account of steps and answers.
            start_time: When the whole engine started, by `time.monotonic`; now if not given.
        """
        self.limits = limits
        self.last_steps: list[StepStats] = []
        self._executor = executor
        self._scheduler = Scheduler(
            limits.scheduler_config,
            limits.cache_config,
            limits.model_info,
            num_stages=num_stages,
            clock=time.monotonic,
        )
        self._outputs = OutputProcessor(tokenizer, replica=replica)
        self._seed = seed
        self._replica = replica
        self._start_time = time.monotonic() if start_time is None else start_time
        self._in_flight: deque[_StepInFlight] = deque()
        self._suspects: set[int] = set()  # requests of a failed step, until they have a new token
        self._num_requests = 0
        self._num_steps = 0

    @property
    def num_unfinished(self) -> int:
        """Prompts whose answers are not complete."""
        return len(self._outputs)

    def __contains__(self, request_id: str) -> bool:
        """Tells whether a prompt of this name is unfinished."""
        return request_id in self._outputs

    @property
    def num_waiting_prompt_tokens(self) -> int:
        """Tokens of the prompts that have not started, or gave their blocks back."""
        return self._scheduler.num_waiting_prompt_tokens

    def add(self, prompt: TokenizedPrompt) -> None:
        """Takes a prompt in.

        Raises:
            PromptTooLongError: Prompt and answer exceed the context.
            NeverFitsError: They exceed the whole KV cache.
        """
        requests = []
        for index in range(prompt.sampling_params.num_drawn):
            request = Request(
                request_id=self._num_requests + index,
                prompt_token_ids=prompt.prompt_token_ids,
                sampling_params=prompt.sampling_params,
                max_tokens=prompt.max_tokens,
                group_id=prompt.request_id,
                index=index,
                sampling_seed=self._stream_seed(prompt, index),
                arrival_time=prompt.arrival_time,
                timeout_seconds=prompt.timeout_seconds,
            )
            self._scheduler.add(request)  # refuses all or none: they are of one length
            requests.append(request)
        self._num_requests += len(requests)
        self._outputs.add(prompt.text, requests)

    def waiting(self) -> list[str]:
        """Returns the prompts of which nothing is answered yet and that hold no blocks."""
        return [
            name
            for name, requests in self._outputs.unfinished()
            if all(request.status is RequestStatus.WAITING for request in requests)
            and not any(request.num_output_tokens for request in requests)
        ]

    def abort(self, request_ids: Iterable[str]) -> None:
        """Gives prompts up. No output comes for them any more; unknown ids are ignored."""
        for name in request_ids:
            if name in self._outputs:
                for request in self._outputs.remove(name):
                    self._suspects.discard(request.request_id)
                    self._scheduler.finish(request, FinishReason.CANCELLED)

    def step(self) -> list[RequestOutput]:
        """Books the oldest step in flight, once there are as many as there may be.

        Raises:
            EngineError: The model can run no step any more; the engine is of no use.

        Returns:
            Outputs of the prompts that have new tokens, as their `output_kind` asks for; an
            empty list when nothing is unfinished, or when a step has to be run again.
        """
        self.last_steps = []
        self._submit_steps()
        if not self._in_flight:
            return []
        oldest = self._in_flight.popleft()
        result = self._collect(oldest.step)
        if result is None:
            return []
        has_failures = bool(result.failures)
        if has_failures:
            result = self._scheduler.screen(oldest.step, result)
        changed = self._scheduler.update(oldest.step, result)
        if has_failures:
            self._drop_steps_in_flight()
        self._suspects.difference_update(request.request_id for request in changed)
        self._outputs.read_prompts(result.prompt_logprobs)
        sampled = [request for request in changed if request.error is None]
        for request in sampled:
            stop_string = self._outputs.read(request, result.logprobs.get(request.request_id))
            if stop_string is not None:
                self._scheduler.finish(request, FinishReason.STOP, stop_string)
        self.last_steps = [self._stats(oldest, result, num_sampled_tokens=len(sampled))]
        self._num_steps += 1
        return self._outputs.outputs(changed + self._cancel_overdue())

    def close(self) -> None:
        """Ends the threads that run steps."""
        self._executor.close()

    def _submit_steps(self) -> None:
        # A step that may fail is alone, so that its parts can be run again.
        limit = 1 if self._suspects else self.limits.scheduler_config.npu_queue_limit
        while len(self._in_flight) < limit:
            start = time.monotonic()
            step = self._scheduler.schedule()
            if not step.requests:
                return
            self._in_flight.append(_StepInFlight(step, time.monotonic() - start))
            self._executor.submit(step)

    def _collect(self, step: SchedulerOutput) -> StepResult | None:
        """Waits for the oldest step; of one that fails, for the parts that do not.

        Returns:
            Its result; None if it has to be scheduled again, as steps that build on each other
            cannot be taken apart.
        """
        try:
            return self._executor.collect()
        except EngineError:
            raise
        except Exception as error:  # noqa: BLE001 - a model may raise anything
            is_alone = self._suspects or self.limits.scheduler_config.npu_queue_limit == 1
            if is_alone:
                return self._run_in_parts(step, error)
            self._suspects = {share.request_id for share in step.requests}
        self._scheduler.drop(step)
        self._drop_steps_in_flight()
        return None

    def _run_in_parts(self, step: SchedulerOutput, error: Exception) -> StepResult:
        _logger.debug("step %d failed and is run in parts: %s", self._num_steps, reason_of(error))
        self._suspects.clear()
        bisection = Bisection(
            step,
            self._run,
            block_size=self.limits.cache_config.block_size,
            harmless_token_id=min(self.limits.model_info.eos_token_ids, default=0),
        )
        try:
            return bisection.result(error)
        except EngineError as reason:
            raise EngineError(f"step {self._num_steps} failed: {reason}") from error

    def _run(self, step: SchedulerOutput) -> StepResult:
        self._executor.submit(step)
        return self._executor.collect()

    def _drop_steps_in_flight(self) -> None:
        """Waits for what the device still runs, and lets it be computed again."""
        for later in self._in_flight:
            with contextlib.suppress(Exception):  # it may build on a step that has failed
                self._executor.collect()
            self._scheduler.drop(later.step)
        self._in_flight.clear()

    def _cancel_overdue(self) -> list[Request]:
        """Ends every answer to a prompt that has taken longer than it may."""
        cancelled = []
        for overdue in self._scheduler.take_overdue():
            error = RequestTimeoutError(f"not answered within {overdue.timeout_seconds:g} s")
            for request in self._outputs.unfinished_of(overdue.group_id):
                self._suspects.discard(request.request_id)
                self._scheduler.finish(request, FinishReason.CANCELLED, error=error)
                cancelled.append(request)
        return cancelled

    def _stream_seed(self, prompt: TokenizedPrompt, index: int) -> int:
        params = prompt.sampling_params
        if params.is_greedy:
            return 0  # nothing is drawn
        if params.seed is not None:
            return stream_seed(params.seed, index)
        return stream_seed(self._seed, prompt.request_id, index)

    def _stats(
        self, in_flight: _StepInFlight, result: StepResult, *, num_sampled_tokens: int
    ) -> StepStats:
        counts = in_flight.step.counts
        return StepStats(
            replica=self._replica,
            step=self._num_steps,
            time_s=time.monotonic() - self._start_time,
            num_running=counts.num_running,
            num_waiting=counts.num_waiting,
            num_prefill_tokens=counts.num_prefill_tokens,
            num_decode_tokens=counts.num_decode_tokens,
            num_recomputed_tokens=counts.num_recomputed_tokens,
            num_cached_tokens=counts.num_cached_tokens,
            num_sampled_tokens=num_sampled_tokens,
            num_preemptions=counts.num_preemptions,
            num_used_blocks=counts.num_used_blocks,
            num_free_blocks=counts.num_free_blocks,
            num_steps_in_flight=counts.num_steps_in_flight,
            schedule_ms=in_flight.schedule_seconds * 1e3,
            model_ms=result.model_seconds * 1e3,
            sample_ms=result.sample_seconds * 1e3,
        )
