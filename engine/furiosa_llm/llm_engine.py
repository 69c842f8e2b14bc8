"""The engine: takes prompts in, runs steps, hands answers out."""

from __future__ import annotations

import contextlib
import time
from array import array
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Protocol

import torch

from furiosa_llm.artifact.defaults import resolve_engine_args
from furiosa_llm.config import EngineArgs
from furiosa_llm.engine_core import EngineCore
from furiosa_llm.engine_limits import EngineLimits
from furiosa_llm.errors import InvalidRowError, ModelLoadError
from furiosa_llm.execution.grammars import Grammars
from furiosa_llm.execution.prepared_model import prepare_model
from furiosa_llm.execution.step_queue import queue_for
from furiosa_llm.outputs import RequestOutput, StepStats
from furiosa_llm.replicas.launcher_process import LauncherProcess
from furiosa_llm.replicas.messages import Launch
from furiosa_llm.replicas.placement import Placement, place, usable_cores
from furiosa_llm.replicas.pool import ReplicaPool
from furiosa_llm.request import TokenizedPrompt
from furiosa_llm.sampling_params import SamplingParams
from furiosa_llm.tokenization import Tokenizer

Prompt = str | Mapping[str, object]


class Core(Protocol):
    """What answers tokenized prompts: an `EngineCore` here, or a pool of them elsewhere."""

    @property
    def limits(self) -> EngineLimits:
        """What it was built for."""

    @property
    def last_steps(self) -> list[StepStats]:
        """The steps that the last call of `step` booked."""

    def add(self, prompt: TokenizedPrompt) -> None:
        """Takes a prompt in, or refuses it with a RequestError."""

    def abort(self, request_ids: Iterable[str]) -> None:
        """Gives prompts up."""

    def step(self) -> list[RequestOutput]:
        """Goes on until there is something to tell."""

    def close(self) -> None:
        """Ends its threads and processes."""


class LLMEngine:
    """Answers prompts with a language model, many at once.

    Add requests, then call `step` until nothing is unfinished; requests may be added between
    steps. Random draws depend on the seed, the request id and the place in the answer, so that an
    answer does not change with what else is running.

    Attributes:
        tokenizer: Of the model.
        limits: What the engine was built for: the sizes of its KV cache and of its steps.
    """

    def __init__(
        self,
        *,
        core: Core,
        tokenizer: Tokenizer,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Joins the parts; most callers want `from_engine_args`."""
        self.tokenizer = tokenizer
        self.limits = core.limits
        self._core = core
        self._grammars = Grammars(lambda: tokenizer, core.limits.model_info)
        self._clock = clock
        self._unfinished: set[str] = set()

    @classmethod
    def from_engine_args(cls, args: EngineArgs) -> LLMEngine:
        """Loads the model and builds the engine around it.

        Of an artifact, options that were not given have the values that it was built with.

        Raises:
            ModelLoadError: The model or its tokenizer cannot be loaded or is not supported.
            ConfigError: An option does not go with the model or with this machine.
        """
        args = resolve_engine_args(args)
        placement = place(args, cores=usable_cores(), num_gpus=torch.cuda.device_count())
        if not placement.is_one_process:
            return cls._with_replicas(args, placement)
        (((process,),),) = placement.replicas
        prepared = prepare_model(args, device=process.device)
        tokenizer = Tokenizer.from_engine_args(args)
        limits = prepared.limits
        runner = prepared.make_runner(process.num_threads)
        core = EngineCore(
            executor=queue_for(runner, limits.scheduler_config.npu_queue_limit),
            tokenizer=tokenizer,
            limits=limits,
            seed=args.seed,
        )
        return cls(core=core, tokenizer=tokenizer)

    @classmethod
    def _with_replicas(cls, args: EngineArgs, placement: Placement) -> LLMEngine:
        launcher = LauncherProcess(Launch(args, placement))
        with contextlib.ExitStack() as stack:
            stack.callback(launcher.close)
            try:
                tokenizer = Tokenizer.from_engine_args(args)  # while the launcher loads the model
            except ModelLoadError:
                launcher.wait_until_ready()  # what is wrong with the model is told first
                raise
            engine = cls(core=ReplicaPool(launcher, placement.num_replicas), tokenizer=tokenizer)
            stack.pop_all()
        return engine

    @property
    def vocab_size(self) -> int:
        """Number of tokens that the model knows."""
        return self.limits.model_info.vocab_size

    @property
    def num_unfinished_requests(self) -> int:
        """Prompts whose answers are not complete."""
        return len(self._unfinished)

    @property
    def last_steps(self) -> list[StepStats]:
        """The account of the steps that the last call of `step` brought: of each replica some."""
        return self._core.last_steps

    def has_unfinished_requests(self) -> bool:
        """Tells whether `step` has anything to do."""
        return len(self._unfinished) > 0

    def add_request(self, request_id: str, prompt: Prompt, sampling_params: SamplingParams) -> None:
        """Takes a prompt in. Its answer comes from a later `step`.

        Args:
            request_id: A name that no unfinished request has.
            prompt: The text, or `{"prompt": text}`, or `{"prompt_token_ids": [...]}`. Text is
                tokenized with the special tokens that the tokenizer adds by itself.
            sampling_params: How to choose the tokens and when to stop.

        Raises:
            ValueError: The id is no string or is in use; or, as a RequestError, the prompt is
                empty or malformed, too long for the context, or never fits the KV cache, or the
                parameters do not go with the model.
        """
        if not isinstance(request_id, str):
            raise ValueError(f"request_id must be a string, got {request_id!r}")
        if request_id in self._unfinished:
            raise ValueError(f"request_id {request_id!r} belongs to an unfinished request")
        text, token_ids = self._tokenize(prompt)
        sampling_params.check_vocabulary(self.vocab_size)
        if sampling_params.structured_outputs is not None:
            self._grammars.check(sampling_params.structured_outputs)
        max_tokens = sampling_params.max_tokens
        if max_tokens is None:
            max_tokens = max(self.limits.longest_sequence - len(token_ids), 1)
        self._core.add(
            TokenizedPrompt(
                request_id=request_id,
                text=text,
                token_ids=token_ids,
                sampling_params=sampling_params,
                max_tokens=max_tokens,
                arrival_time=self._clock(),
            )
        )
        self._unfinished.add(request_id)

    def abort_request(self, request_id: str | Iterable[str]) -> None:
        """Gives requests up. No output comes for them any more; unknown ids are ignored."""
        names = {request_id} if isinstance(request_id, str) else set(request_id)
        self._core.abort(names & self._unfinished)
        self._unfinished -= names

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
        outputs = self._core.step()
        self._unfinished.difference_update(o.request_id for o in outputs if o.finished)
        return outputs

    def shutdown(self) -> None:
        """Ends the engine's threads and processes. It may be called again."""
        self._core.close()

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
