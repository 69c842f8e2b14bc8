"""The engine: takes prompts in, runs steps, hands answers out."""

from __future__ import annotations

import dataclasses
import logging
import time
from collections.abc import Callable, Iterable

from furiosa_llm.backlog import Backlog
from furiosa_llm.config import EngineArgs
from furiosa_llm.core_start import Core, start_core
from furiosa_llm.errors import EngineError
from furiosa_llm.outputs import RequestOutput, StepStats
from furiosa_llm.param_checks import is_finite, require
from furiosa_llm.prompt_intake import Prompt, PromptIntake
from furiosa_llm.replicas.placement import Placement
from furiosa_llm.sampling_params import SamplingParams
from furiosa_llm.throughput_log import ThroughputLog
from furiosa_llm.tokenization import Tokenizer

_logger = logging.getLogger(__name__)


class LLMEngine:
    """Answers prompts with a language model, many at once.

    Add requests, then call `step` until nothing is unfinished; requests may be added between
    steps. Random draws depend on the seed, the request id and the place in the answer, so that an
    answer does not change with what else is running.

    It is not made for several threads at once; `AsyncLLMEngine` is.

    Attributes:
        tokenizer: Of the model.
        placement: The processes of each replica, and what they run on.
        limits: What the engine was built for: the sizes of its KV cache and of its steps.
        import_seconds: Time of its start that went into loading libraries.
    """

    def __init__(
        self,
        *,
        core: Core,
        tokenizer: Tokenizer,
        placement: Placement,
        import_seconds: float = 0.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Joins the parts; most callers want `from_engine_args`."""
        self.tokenizer = tokenizer
        self.placement = placement
        self.limits = core.limits
        self.import_seconds = import_seconds
        self._core = Backlog(core)
        self._intake = PromptIntake(tokenizer, core.limits)
        self._clock = clock
        self._throughput_log = ThroughputLog(clock)
        self._ended: str | None = None  # why it takes no more requests

    @classmethod
    def from_engine_args(cls, args: EngineArgs, *, num_prompts: int | None = None) -> LLMEngine:
        """Loads the model and builds the engine around it.

        Args:
            args: What the engine is to be.
            num_prompts: About how many prompts will come, if that is known. On a plain `cpu`,
                replicas are started for many of them, unless the arguments say how many.

        Of an artifact, options that were not given have the values that it was built with.

        Raises:
            ModelLoadError: The model or its tokenizer cannot be loaded or is not supported.
            ConfigError: An option does not go with the model or with this machine.
        """
        started = start_core(args, num_prompts=num_prompts)
        cache = started.core.limits.cache_config
        _logger.info(
            "%s, with a KV cache of %s blocks of %s tokens each",
            started.placement,
            f"{cache.num_blocks:,}",
            cache.block_size,
        )
        return cls(
            core=started.core,
            tokenizer=started.tokenizer,
            placement=started.placement,
            import_seconds=started.import_seconds,
        )

    @property
    def vocab_size(self) -> int:
        """Number of tokens that the model knows."""
        return self.limits.model_info.vocab_size

    @property
    def num_unfinished_requests(self) -> int:
        """Prompts whose answers are not complete."""
        return 0 if self._ended else self._core.num_unfinished

    @property
    def last_steps(self) -> list[StepStats]:
        """The account of the steps that the last call of `step` brought: of each replica some."""
        return self._core.last_steps

    def has_unfinished_requests(self) -> bool:
        """Tells whether `step` has anything to do."""
        return self.num_unfinished_requests > 0

    def add_request(
        self,
        request_id: str,
        prompt: Prompt,
        sampling_params: SamplingParams,
        *,
        timeout_seconds: float | None = None,
    ) -> None:
        """Takes a prompt in. Its answer comes from a later `step`.

        Args:
            request_id: A name that no unfinished request has.
            prompt: The text, or `{"prompt": text}`, or `{"prompt_token_ids": [...]}`. Text is
                tokenized with the special tokens that the tokenizer adds by itself. Given
                beside token ids, it only stands in the outputs.
            sampling_params: How to choose the tokens and when to stop.
            timeout_seconds: Longest time from its first step to its end. Then it is cancelled,
                with a RequestTimeoutError and the tokens that it has.

        Raises:
            ValueError: The id is no string or is in use; or, as a RequestError, the prompt is
                empty or malformed, too long for the context, or never fits the KV cache, or the
                parameters or the timeout are not allowed, or do not go with the model.
            EngineError: The engine was shut down or has broken.
        """
        if self._ended is not None:
            raise EngineError(f"{self._ended}; make a new one")
        if not isinstance(request_id, str):
            raise ValueError(f"request_id must be a string, got {request_id!r}")
        if request_id in self._core:
            raise ValueError(f"request_id {request_id!r} belongs to an unfinished request")
        if timeout_seconds is not None:
            is_time = is_finite(timeout_seconds) and timeout_seconds > 0
            require(is_time, "timeout_seconds", timeout_seconds, "a number above 0, or None")
        taken = self._intake.take(request_id, prompt, sampling_params, arrival_time=self._clock())
        self._core.add(dataclasses.replace(taken, timeout_seconds=timeout_seconds))

    def check_request(self, prompt: Prompt, sampling_params: SamplingParams) -> Prompt:
        """Finds out whether a prompt can be answered, without taking it in.

        Raises:
            RequestError: It cannot; `add_request` would say the same.

        Returns:
            The prompt with its tokens, which `add_request` does not tokenize again.
        """
        taken = self._intake.take("", prompt, sampling_params, arrival_time=self._clock())
        return {"prompt": taken.text, "prompt_token_ids": taken.prompt_token_ids}

    def check_params(self, sampling_params: SamplingParams) -> None:
        """Finds out whether parameters go with the model.

        Raises:
            InvalidParamsError: They do not.
        """
        self._intake.check_params(sampling_params)

    def abort_waiting(self) -> None:
        """Gives up the requests whose answers have not begun; those that run go on."""
        if not self._ended:
            self._core.abort(self._core.waiting())

    def abort_request(self, request_id: str | Iterable[str]) -> None:
        """Gives requests up. No output comes for them any more; unknown ids are ignored."""
        names = {request_id} if isinstance(request_id, str) else set(request_id)
        names = {name for name in names if name in self._core}
        if names and not self._ended:
            self._core.abort(names)

    def step(self) -> list[RequestOutput]:
        """Runs one forward pass; with several replicas, waits until one of them has run one.

        Raises:
            EngineError: The model cannot run the step; the engine is of no use any more.

        Returns:
            Outputs of the prompts that have new tokens, as their `output_kind` asks for; an
            empty list when nothing is unfinished.
        """
        if not self.has_unfinished_requests():
            return []
        try:
            outputs = self._core.step()
        except BaseException as error:  # an interrupt leaves a step half booked, too
            self._end(f"the engine broke: {str(error) or type(error).__name__}")
            raise
        self._throughput_log.note(self.last_steps, num_unfinished=self.num_unfinished_requests)
        return outputs

    def shutdown(self) -> None:
        """Ends the engine's threads and processes. It may be called again."""
        self._end("the engine was shut down")
        self._core.close()

    def _end(self, reason: str) -> None:
        self._ended = self._ended or reason
