"""Text to tokens and back."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from furiosa_llm.config import EngineArgs
from furiosa_llm.errors import (
    ConfigError,
    InvalidParamsError,
    InvalidRowError,
    ModelLoadError,
    PromptTooLongError,
)
from furiosa_llm.templates.environment import RENDERING_ERRORS, BoundedEnvironment
from furiosa_llm.token_bounds import bytes_per_token

_TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt")


class Tokenizer:
    """A Hugging Face tokenizer, with what a batch needs of it."""

    def __init__(
        self,
        path: str,
        *,
        mode: str = "auto",
        add_special_tokens: bool = True,
        trust_remote_code: bool = False,
    ) -> None:
        """Loads the tokenizer of a folder or a hub id.

        Args:
            path: Of it.
            mode: `auto` or `slow`.
            add_special_tokens: Whether prompts get those that it adds by itself.
            trust_remote_code: Whether code that comes with it may run.

        Raises:
            ModelLoadError: There is none, or it cannot be read.
            ConfigError: The slow one is asked for, and there is none.
        """
        self._tokenizer = _load(path, mode=mode, trust_remote_code=trust_remote_code)
        self._add_special_tokens = add_special_tokens

    @classmethod
    def from_engine_args(cls, args: EngineArgs) -> Tokenizer:
        """Loads the tokenizer that the arguments name, else the model's own.

        Raises:
            ModelLoadError: There is none, or it cannot be read.
            ConfigError: The slow one is asked for, and there is none.
        """
        return cls(
            args.tokenizer or args.model,
            mode=args.tokenizer_mode,
            add_special_tokens=args.add_special_tokens,
            trust_remote_code=args.trust_remote_code,
        )

    @property
    def chat_template(self) -> str | None:
        """The Jinja template that turns messages into a prompt, if there is one."""
        template = self._tokenizer.chat_template
        return template if template is None or isinstance(template, str) else str(template)

    def definition(self) -> tuple[str, int]:
        """Returns the tokenizer in the form of `tokenizer.json`, and the number of its tokens.

        Raises:
            InvalidParamsError: It is a slow one, which has no such form.
        """
        if not self._tokenizer.is_fast:
            raise InvalidParamsError(
                "structured_outputs needs a fast tokenizer; use --tokenizer-mode auto"
            )
        return self._tokenizer.backend_tokenizer.to_str(), len(self._tokenizer)

    def check_length(self, text: str, *, max_num_tokens: int) -> None:
        """Refuses a text that surely has too many tokens: to find out how many may take minutes.

        Raises:
            PromptTooLongError: It has, whatever its tokens are.
        """
        if len(text) <= max_num_tokens:
            return
        limit = self._bytes_per_token
        num_bytes = len(text.encode(errors="surrogatepass"))
        if limit is not None and num_bytes > max_num_tokens * limit:
            raise PromptTooLongError.of_bytes(
                num_bytes=num_bytes, num_tokens=-(-num_bytes // limit), max_model_len=max_num_tokens
            )

    @functools.cached_property
    def _bytes_per_token(self) -> int | None:
        if not self._tokenizer.is_fast:
            return None
        return bytes_per_token(self._tokenizer.backend_tokenizer.to_str())

    def encode(self, text: str) -> list[int]:
        """Tokenizes a prompt, with the special tokens that the tokenizer adds if it is to."""
        token_ids: list[int] = self._tokenizer.encode(
            text, add_special_tokens=self._add_special_tokens
        )
        return token_ids

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """Tokenizes many prompts at once."""
        encoded = self._tokenizer(
            list(texts), padding=False, add_special_tokens=self._add_special_tokens
        )
        token_ids: list[list[int]] = encoded["input_ids"]
        return token_ids

    def encode_rendered(self, text: str) -> list[int]:
        """Tokenizes what the chat template wrote: its special tokens, and no others."""
        token_ids: list[int] = self._tokenizer.encode(text, add_special_tokens=False)
        return token_ids

    def render_chat(self, messages: Sequence[Mapping[str, object]]) -> str:
        """Turns messages into a prompt by the chat template, ready for the next answer.

        Raises:
            InvalidRowError: There is no template, or it refuses the messages.
        """
        if self._tokenizer.chat_template is None:
            raise InvalidRowError(
                "the tokenizer has no chat template; give `prompt` in place of `messages`"
            )
        try:
            text: str = self._tokenizer.apply_chat_template(
                list(messages), tokenize=False, add_generation_prompt=True
            )
            text.encode()  # a template can make half of a surrogate pair
        except RENDERING_ERRORS as error:
            reason = str(error) or type(error).__name__
            raise InvalidRowError(f"the chat template refuses the messages: {reason}") from error
        return text

    def decode(self, token_ids: Sequence[int], *, skip_special_tokens: bool) -> str:
        """Turns tokens back into text."""
        text: str = self._tokenizer.decode(
            token_ids, skip_special_tokens=skip_special_tokens, clean_up_tokenization_spaces=False
        )
        return text


def _load(path: str, *, mode: str, trust_remote_code: bool) -> Any:
    from transformers import AutoTokenizer  # loads torch
    from transformers.utils import chat_template_utils

    # A chat template comes with the model: it is rendered in our sandbox in place of Jinja's.
    chat_template_utils.ImmutableSandboxedEnvironment = BoundedEnvironment
    try:
        tokenizer = AutoTokenizer.from_pretrained(
            path, use_fast=mode != "slow", trust_remote_code=trust_remote_code
        )
    except (OSError, ValueError, KeyError, ImportError, TypeError) as error:
        raise ModelLoadError(
            f"{path}: cannot load a tokenizer: {_reason(path, error)}; check --tokenizer"
        ) from error
    if mode == "slow" and tokenizer.is_fast:
        raise ConfigError(
            f"{path}: transformers has only a fast tokenizer of this kind "
            f"({type(tokenizer).__name__}); use --tokenizer-mode auto"
        )
    return tokenizer


def _reason(path: str, error: BaseException) -> str:
    if not Path(path).exists():
        return "no such folder"
    if not any((Path(path) / name).exists() for name in _TOKENIZER_FILES):
        return f"the folder has none of {', '.join(_TOKENIZER_FILES)}"
    return str(error).split("\n")[0]
