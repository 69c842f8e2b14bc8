"""A language model in one object: a list of prompts in, a list of answers out."""

from __future__ import annotations

import contextlib
import dataclasses
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TypeGuard, Unpack

from tqdm import tqdm

from furiosa_llm.config import EngineArgs
from furiosa_llm.engine_options import EngineOptions
from furiosa_llm.errors import InvalidRowError, RequestError
from furiosa_llm.interrupts import HeldInterrupt
from furiosa_llm.llm_engine import LLMEngine
from furiosa_llm.outputs import RequestOutput
from furiosa_llm.prompt_intake import Prompt
from furiosa_llm.sampling_params import RequestOutputKind, SamplingParams

Conversation = Sequence[Mapping[str, object]]


class LLM:
    """Answers lists of prompts, offline: each call returns when all of them are answered.

    Use it as a context manager, or call `shutdown` at the end. Calls from several threads wait
    for each other. A prompt's place in its list stands for it in random draws, so that a call
    that is repeated brings the same answers.

    Example:
        with LLM("samples/tiny-llama", devices="cpu") as llm:
            outputs = llm.generate(["Add 67 and 4."], SamplingParams(temperature=0))
    """

    def __init__(self, model: str | Path, **options: Unpack[EngineOptions]) -> None:
        """Loads a model.

        Args:
            model: An artifact, a checkpoint folder in Hugging Face layout, or a hub id.
            **options: Those of `EngineArgs`; `is_offline` is True if it is not given.

        Raises:
            ModelLoadError: The model or its tokenizer cannot be loaded or is not supported.
            ConfigError: An option does not go with the model or with this machine.
        """
        args = EngineArgs(model=str(model), **options)
        if args.is_offline is None:
            args = dataclasses.replace(args, is_offline=True)
        self._engine = LLMEngine.from_engine_args(args)
        self._lock = threading.RLock()  # `chat` calls `generate`

    @classmethod
    def from_engine_args(cls, args: EngineArgs) -> LLM:
        """Loads the model of `args`, as `LLM(...)` does."""
        return cls(**dataclasses.asdict(args))

    def __enter__(self) -> LLM:
        return self

    def __exit__(self, *_: object) -> None:
        self.shutdown()

    def generate(
        self,
        prompts: Prompt | Sequence[Prompt],
        sampling_params: SamplingParams | Sequence[SamplingParams] | None = None,
        *,
        use_tqdm: bool = True,
    ) -> list[RequestOutput]:
        """Answers prompts.

        All of them are checked before the first is answered. When the call ends early, by an
        error or Ctrl-C, the engine gives up what is left of it and can be used again; only a
        second Ctrl-C breaks off a step, and with it the engine.

        Args:
            prompts: A prompt or a list: text, `{"prompt": text}` or `{"prompt_token_ids": [...]}`.
            sampling_params: For all prompts, or one for each; the defaults if not given. Their
                `output_kind` is not looked at: answers come when they are complete.
            use_tqdm: Whether to show on standard error how many prompts are answered.

        Raises:
            ValueError: There are not as many sampling parameters as prompts; or, as a
                RequestError that names the prompt's index, a prompt cannot be answered.
            EngineError: The engine has broken or was shut down.

        Returns:
            An output for each prompt, in the order of the prompts.
        """
        batch = [prompts] if isinstance(prompts, str | Mapping) else list(prompts)
        params = _params_of_each(sampling_params, len(batch))
        with self._lock:
            checked = []
            for index, prompt in enumerate(batch):
                with _named(index):
                    checked.append(self._engine.check_request(prompt, params[index]))
            with _progress_bar(len(batch), is_shown=use_tqdm) as count:
                return self._answer(checked, params, count)

    def chat(
        self,
        messages: Conversation | Sequence[Conversation],
        sampling_params: SamplingParams | Sequence[SamplingParams] | None = None,
        *,
        use_tqdm: bool = True,
    ) -> list[RequestOutput]:
        """Answers conversations, rendered by the tokenizer's chat template.

        Args:
            messages: A conversation or a list of them. A conversation is a list of messages such
                as `{"role": "user", "content": "Hello"}`.
            sampling_params: As for `generate`.
            use_tqdm: As for `generate`.

        Raises:
            ValueError: As for `generate`, or the template refuses a conversation.
            EngineError: The engine has broken or was shut down.

        Returns:
            An output for each conversation, in their order.
        """
        conversations = [messages] if _is_conversation(messages) else messages
        params = _params_of_each(sampling_params, len(conversations))
        with self._lock:
            prompts = []
            for index, conversation in enumerate(conversations):
                with _named(index):
                    prompts.append(self._rendered(conversation))
            return self.generate(prompts, params, use_tqdm=use_tqdm)

    def shutdown(self) -> None:
        """Ends the engine's threads and processes. It may be called again."""
        with self._lock:
            self._engine.shutdown()

    def _rendered(self, conversation: object) -> Prompt:
        if not _is_conversation(conversation):
            raise InvalidRowError(
                "a conversation must be a list of messages with a role and a content, got "
                f"{str(conversation)[:80]!r}"
            )
        text = self._engine.tokenizer.render_chat(conversation)
        token_ids = self._engine.tokenizer.encode_rendered(text)
        return {"prompt": text, "prompt_token_ids": token_ids}

    def _answer(
        self,
        prompts: Sequence[Prompt],
        params: Sequence[SamplingParams],
        count: Callable[[int], object],
    ) -> list[RequestOutput]:
        """Feeds the engine as it has room. The index of a prompt is the id of its request."""
        engine = self._engine
        max_unfinished = engine.limits.scheduler_config.max_processing_samples
        outputs: dict[int, RequestOutput] = {}
        num_added = 0
        with HeldInterrupt() as interrupt:
            try:
                while len(outputs) < len(prompts):
                    while num_added < len(prompts):
                        if engine.num_unfinished_requests >= max_unfinished:
                            break
                        engine.add_request(str(num_added), prompts[num_added], params[num_added])
                        num_added += 1
                    finished = engine.step()
                    outputs.update((int(output.request_id), output) for output in finished)
                    count(len(finished))
                    interrupt.deliver()
            except BaseException:
                engine.abort_request(str(index) for index in range(num_added))
                raise
        return [outputs[index] for index in range(len(prompts))]


def _is_conversation(value: object) -> TypeGuard[Conversation]:
    """Tells one conversation from a list of them; nothing at all is an empty list of them."""
    if not isinstance(value, Sequence) or not value:
        return False
    return all(isinstance(message, Mapping) for message in value)


def _params_of_each(
    params: SamplingParams | Sequence[SamplingParams] | None, num_prompts: int
) -> list[SamplingParams]:
    if params is None:
        params = SamplingParams()
    if isinstance(params, SamplingParams):
        return [dataclasses.replace(params, output_kind=RequestOutputKind.FINAL)] * num_prompts
    if len(params) != num_prompts:
        raise ValueError(
            f"there are {num_prompts} prompts but {len(params)} sampling_params; give one for "
            "each prompt, or a single one for all"
        )
    return [dataclasses.replace(own, output_kind=RequestOutputKind.FINAL) for own in params]


@contextlib.contextmanager
def _named(index: int) -> Iterator[None]:
    """Puts the prompt's index before the message of an error that it causes."""
    try:
        yield
    except RequestError as error:
        error.args = (f"prompt {index}: {error}",)
        raise


@contextlib.contextmanager
def _progress_bar(total: int, *, is_shown: bool) -> Iterator[Callable[[int], object]]:
    """Shows how many prompts are answered; yields what counts them."""
    if not is_shown:
        yield lambda _: None
        return
    with tqdm(total=total, desc="answering", unit=" prompts", dynamic_ncols=True) as bar:
        yield bar.update
