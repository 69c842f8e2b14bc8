"""The engine: takes prompts in, runs steps, hands answers out."""

from __future__ import annotations

import time
from array import array
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Protocol

from furiosa_llm.config import CacheConfig, EngineArgs, ModelInfo, SchedulerConfig
from furiosa_llm.errors import EngineError, InvalidRowError
from furiosa_llm.execution.local_executor import load_local_executor
from furiosa_llm.execution.random_draws import stream_seed
from furiosa_llm.output_processor import OutputProcessor
from furiosa_llm.outputs import RequestOutput, StepStats
from furiosa_llm.request import FinishReason, Request
from furiosa_llm.sampling_params import SamplingParams
from furiosa_llm.scheduler_output import SchedulerOutput, StepResult
from furiosa_llm.scheduling.scheduler import Scheduler
from furiosa_llm.tokenization import Tokenizer

Prompt = str | Mapping[str, object]


class StepExecutor(Protocol):
    """What the engine needs of a model runner. Tests replace it with a few lines."""

    def execute(self, step: SchedulerOutput) -> StepResult:
        """Runs one forward pass and chooses the token of each request that is due one."""


class LLMEngine:
    """Answers prompts with a language model, many at once.

    Add requests, then call `step` until nothing is unfinished; requests may be added between
    steps. Random draws depend on the seed, the request id and the place in the answer, so that an
    answer does not change with what else is running.
    """

    def __init__(
        self,
        *,
        executor: StepExecutor,
        tokenizer: Tokenizer,
        scheduler_config: SchedulerConfig,
        cache_config: CacheConfig,
        model_info: ModelInfo,
        seed: int = 0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Joins the parts; most callers want `from_engine_args`."""
        self.tokenizer = tokenizer
        self.scheduler_config = scheduler_config
        self.cache_config = cache_config
        self._executor = executor
        self._scheduler = Scheduler(
            scheduler_config, cache_config, eos_token_ids=model_info.eos_token_ids, clock=clock
        )
        self._outputs = OutputProcessor(tokenizer)
        self.vocab_size = model_info.vocab_size
        self._seed = seed
        self._clock = clock
        self._start_time = clock()
        self._num_requests = 0
        self._num_steps = 0
        self.last_step: StepStats | None = None

    @classmethod
    def from_engine_args(cls, args: EngineArgs) -> LLMEngine:
        """Loads the model and builds the engine around it.

        Raises:
            ModelLoadError: The model or its tokenizer cannot be loaded or is not supported.
            ConfigError: An option does not go with the model or with this machine.
        """
        local = load_local_executor(args)
        tokenizer = Tokenizer(
            args.tokenizer or args.model,
            mode=args.tokenizer_mode,
            trust_remote_code=args.trust_remote_code,
        )
        return cls(
            executor=local.runner,
            tokenizer=tokenizer,
            scheduler_config=SchedulerConfig.from_engine_args(
                args, max_model_len=local.model_info.max_model_len
            ),
            cache_config=local.cache_config,
            model_info=local.model_info,
            seed=args.seed,
        )

    @property
    def num_unfinished_requests(self) -> int:
        """Prompts whose answers are not complete."""
        return len(self._outputs)

    @property
    def kv_cache_usage(self) -> float:
        """Share of the KV-cache blocks that requests hold, from 0 to 1."""
        return self._scheduler.kv_cache_usage

    def has_unfinished_requests(self) -> bool:
        """Tells whether `step` has anything to do."""
        return len(self._outputs) > 0

    def add_request(self, request_id: str, prompt: Prompt, sampling_params: SamplingParams) -> None:
        """Takes a prompt in. Its answer comes from a later `step`.

        Args:
            request_id: A name that no unfinished request has.
            prompt: The text, or `{"prompt": text}`, or `{"prompt_token_ids": [...]}`. Text is
                tokenized with the special tokens that the tokenizer adds by itself.
            sampling_params: How to choose the tokens and when to stop.

        Raises:
            ValueError: The id is no string or is in use; or, as a RequestError, the prompt is
                empty or malformed, too long for the context, or never fits the KV cache.
        """
        if not isinstance(request_id, str):
            raise ValueError(f"request_id must be a string, got {request_id!r}")
        if request_id in self._outputs:
            raise ValueError(f"request_id {request_id!r} belongs to an unfinished request")
        text, token_ids = self._tokenize(prompt)
        now = self._clock()
        max_tokens = sampling_params.max_tokens
        if max_tokens is None:
            max_tokens = max(self._longest_sequence - len(token_ids), 1)
        requests = []
        for index in range(sampling_params.n):
            request = Request(
                request_id=self._num_requests + index,
                prompt_token_ids=token_ids,
                sampling_params=sampling_params,
                max_tokens=max_tokens,
                group_id=request_id,
                index=index,
                sampling_seed=self._stream_seed(request_id, sampling_params, index),
                arrival_time=now,
            )
            self._scheduler.add(request)  # refuses all n or none: they are of one length
            requests.append(request)
        self._num_requests += sampling_params.n
        self._outputs.add(text, requests)

    def abort_request(self, request_id: str | Iterable[str]) -> None:
        """Gives requests up. No output comes for them any more; unknown ids are ignored."""
        for name in [request_id] if isinstance(request_id, str) else list(request_id):
            if name in self._outputs:
                for request in self._outputs.remove(name):
                    self._scheduler.finish(request, FinishReason.CANCELLED)

    def step(self) -> list[RequestOutput]:
        """Runs one forward pass.

        Raises:
            EngineError: The model cannot run the step; the engine is of no use any more.

        Returns:
            Outputs of the prompts that have new tokens, as their `output_kind` asks for; an
            empty list when nothing is unfinished.
        """
        if not self.has_unfinished_requests():
            return []
        start = self._clock()
        step = self._scheduler.schedule()
        scheduled = self._clock()
        result = self._execute(step)
        changed = self._scheduler.update(step, result)
        for request in changed:
            stop_string = self._outputs.read(request)
            if stop_string is not None:
                self._scheduler.finish(request, FinishReason.STOP, stop_string)
        self.last_step = self._stats(step, result, schedule_seconds=scheduled - start)
        self._num_steps += 1
        return self._outputs.outputs(changed)

    def _execute(self, step: SchedulerOutput) -> StepResult:
        try:
            return self._executor.execute(step)
        except (RuntimeError, MemoryError) as error:
            reason = str(error).strip() or type(error).__name__
            raise EngineError(f"step {self._num_steps} failed: {reason}") from error

    @property
    def _longest_sequence(self) -> int:
        """Tokens that one request can have: the context, or the whole cache if that is less."""
        cache = self.cache_config
        return min(self.scheduler_config.max_model_len, cache.num_blocks * cache.block_size)

    def _tokenize(self, prompt: Prompt) -> tuple[str | None, Sequence[int]]:
        text = prompt if isinstance(prompt, str) else prompt.get("prompt")
        if isinstance(text, str):
            token_ids: object = self.tokenizer.encode(text)
        elif isinstance(prompt, Mapping) and "prompt_token_ids" in prompt:
            text, token_ids = None, prompt["prompt_token_ids"]
        else:
            raise InvalidRowError(
                "a prompt must be a text, {'prompt': text} or {'prompt_token_ids': [...]}, got "
                f"{str(prompt)[:80]!r}"
            )
        return text, self._checked(token_ids)

    def _checked(self, token_ids: object) -> Sequence[int]:
        if not isinstance(token_ids, Iterable) or isinstance(token_ids, str | bytes):
            raise InvalidRowError(f"prompt_token_ids must be a list, got {str(token_ids)[:80]!r}")
        try:
            packed = array("i", list(token_ids))
        except (TypeError, OverflowError) as error:
            raise InvalidRowError(f"prompt_token_ids must be whole numbers: {error}") from error
        if not packed:
            raise InvalidRowError("the prompt is empty")
        lowest, highest = min(packed), max(packed)
        if lowest < 0 or highest >= self.vocab_size:
            worst = lowest if lowest < 0 else highest
            raise InvalidRowError(
                f"token id {worst} is not in the vocabulary of {self.vocab_size} tokens"
            )
        return packed

    def _stream_seed(self, request_id: str, params: SamplingParams, index: int) -> int:
        if params.is_greedy:
            return 0  # nothing is drawn
        if params.seed is not None:
            return stream_seed(params.seed, index)
        return stream_seed(self._seed, request_id, index)

    def _stats(
        self, step: SchedulerOutput, result: StepResult, *, schedule_seconds: float
    ) -> StepStats:
        counts = step.counts
        return StepStats(
            replica=0,
            step=self._num_steps,
            time_s=self._clock() - self._start_time,
            num_running=counts.num_running,
            num_waiting=counts.num_waiting,
            num_prefill_tokens=counts.num_prefill_tokens,
            num_decode_tokens=counts.num_decode_tokens,
            num_recomputed_tokens=counts.num_recomputed_tokens,
            num_cached_tokens=counts.num_cached_tokens,
            num_sampled_tokens=len(result.token_ids),
            num_preemptions=counts.num_preemptions,
            num_used_blocks=counts.num_used_blocks,
            num_free_blocks=counts.num_free_blocks,
            schedule_ms=schedule_seconds * 1e3,
            model_ms=result.model_seconds * 1e3,
            sample_ms=result.sample_seconds * 1e3,
        )
