"""One replica's engine: a scheduler, a device, and the answers in the making."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterable

from furiosa_llm.engine_limits import EngineLimits
from furiosa_llm.errors import RequestTimeoutError
from furiosa_llm.execution.random_draws import stream_seed
from furiosa_llm.output_processor import OutputProcessor
from furiosa_llm.outputs import RequestOutput, StepStats
from furiosa_llm.request import FinishReason, Request, RequestStatus, TokenizedPrompt
from furiosa_llm.scheduling.scheduler import Scheduler
from furiosa_llm.scheduling.waiting_room import Strategy
from furiosa_llm.steps_in_flight import CollectedStep, StepExecutor, StepsInFlight
from furiosa_llm.tokenization import Tokenizer


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
        self._scheduler = Scheduler(
            limits.scheduler_config,
            limits.cache_config,
            limits.model_info,
            num_stages=num_stages,
            strategy=Strategy.of(
                is_offline=limits.scheduler_config.is_offline,
                favours_decodes=limits.favours_decodes,
            ),
            clock=time.monotonic,
        )
        self._in_flight = StepsInFlight(executor, self._scheduler, limits)
        self._outputs = OutputProcessor(tokenizer, replica=replica)
        self._seed = seed
        self._replica = replica
        self._start_time = time.monotonic() if start_time is None else start_time
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
                requests = self._outputs.remove(name)
                self._in_flight.clear(request.request_id for request in requests)
                for request in requests:
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
        self._in_flight.submit()
        collected = self._in_flight.collect()
        if collected is None:
            return []
        step = collected.step
        result = self._scheduler.without_harmless(step, collected.result)
        has_failures = bool(result.failures)
        if has_failures:
            result = self._scheduler.screen(step, result)
        changed = self._scheduler.update(step, result)
        if has_failures:
            self._in_flight.drop()
        self._in_flight.clear(request.request_id for request in changed)
        self._outputs.read_prompts(result.prompt_logprobs)
        sampled = [request for request in changed if request.error is None]
        for request in sampled:
            stop_string = self._outputs.read(request, result.logprobs.get(request.request_id))
            if stop_string is not None:
                self._scheduler.finish(request, FinishReason.STOP, stop_string)
        self.last_steps = [self._stats(collected, num_sampled_tokens=len(sampled))]
        self._num_steps += 1
        return self._outputs.outputs(changed + self._cancel_overdue())

    def close(self) -> None:
        """Ends the threads that run steps."""
        self._in_flight.close()

    def _cancel_overdue(self) -> list[Request]:
        """Ends every answer to a prompt that has taken longer than it may."""
        cancelled = []
        for overdue in self._scheduler.take_overdue():
            error = RequestTimeoutError(f"not answered within {overdue.timeout_seconds:g} s")
            requests = self._outputs.unfinished_of(overdue.group_id)
            self._in_flight.clear(request.request_id for request in requests)
            for request in requests:
                self._scheduler.finish(request, FinishReason.CANCELLED, error=error)
                cancelled.append(request)
        return cancelled

    def _stream_seed(self, prompt: TokenizedPrompt, index: int) -> int:
        params = prompt.sampling_params
        if params.is_greedy:
            return 0  # nothing is drawn
        if params.seed is not None:
            return stream_seed(params.seed, index)
        return stream_seed(self._seed, prompt.seed_name, index)

    def _stats(self, collected: CollectedStep, *, num_sampled_tokens: int) -> StepStats:
        return StepStats(
            replica=self._replica,
            step=self._num_steps,
            time_s=time.monotonic() - self._start_time,
            num_sampled_tokens=num_sampled_tokens,
            schedule_ms=collected.schedule_seconds * 1e3,
            model_ms=collected.result.model_seconds * 1e3,
            sample_ms=collected.result.sample_seconds * 1e3,
            **dataclasses.asdict(collected.step.counts),
        )
