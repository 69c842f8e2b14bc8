"""The errors of furiosa_llm, and what each of them ends.

    FuriosaLLMError
    ├── ConfigError (ValueError)   an option, or a combination of options, cannot work
    ├── ModelLoadError             a checkpoint or tokenizer is missing, damaged or unsupported
    ├── DatasetError               an input cannot be read, or an output cannot be written
    ├── RequestError (ValueError)  one prompt cannot be served
    │   ├── InvalidRowError        the row is not a prompt
    │   ├── InvalidParamsError     its sampling parameters make no sense
    │   ├── PromptTooLongError     prompt and answer exceed the context
    │   ├── NeverFitsError         prompt and answer exceed the whole KV cache
    │   ├── PromptFailedError      the engine breaks wherever the prompt is tried
    │   ├── NonFiniteLogitsError   the model gives it scores that are no numbers
    │   ├── StructureFailedError   the form of its answer is too complex
    │   └── RequestTimeoutError    it takes longer than it may
    ├── EngineError                the run cannot go on
    ├── RunStoppedError            the run was told to stop before its end
    └── TooManyErrorsError         more rows failed than may

A `RequestError` ends one request: a batch writes it as an error row and goes on.
Every other error ends the run. A broken invariant is a bug and raises `AssertionError`.
"""

from __future__ import annotations

from typing import ClassVar


class FuriosaLLMError(Exception):
    """Base of every error that a caller may want to catch."""


class ConfigError(FuriosaLLMError, ValueError):
    """An option, or a combination of options, cannot work."""


class ModelLoadError(FuriosaLLMError):
    """A checkpoint or tokenizer is missing, damaged or of an unsupported kind."""


class DatasetError(FuriosaLLMError):
    """An input cannot be read or an output cannot be written."""


class EngineError(FuriosaLLMError):
    """The engine broke and the run cannot go on."""


class RunStoppedError(FuriosaLLMError):
    """A signal or the deadline ended a run; what is finished is kept, and it can go on."""


class TooManyErrorsError(FuriosaLLMError):
    """More rows failed than may; those that are finished are kept, and the run can go on."""


class RequestError(FuriosaLLMError, ValueError):
    """One prompt cannot be served; others are not touched.

    Attributes:
        code: Short name of the cause, as written to the column `error_code`.
    """

    code: ClassVar[str] = "invalid_request"


class InvalidRowError(RequestError):
    """An input row does not hold a prompt that can be understood."""

    code: ClassVar[str] = "invalid_row"


class InvalidParamsError(RequestError):
    """A sampling parameter is unknown, of the wrong type or out of range."""

    code: ClassVar[str] = "invalid_params"


class PromptTooLongError(RequestError):
    """A prompt and its longest answer exceed the model's context."""

    code: ClassVar[str] = "prompt_too_long"

    def __init__(self, message: str, *, num_prompt_tokens: int = 0) -> None:
        super().__init__(message)
        self.num_prompt_tokens = num_prompt_tokens

    @classmethod
    def of_tokens(
        cls, *, num_prompt_tokens: int, max_tokens: int, max_model_len: int
    ) -> PromptTooLongError:
        """Tells of a prompt whose tokens were counted."""
        return cls(
            f"This model's maximum context length is {max_model_len} tokens. However, you "
            f"requested {num_prompt_tokens + max_tokens} tokens ({num_prompt_tokens} in the "
            f"prompt, {max_tokens} in the completion). Reduce the length of the prompt or "
            "max_tokens.",
            num_prompt_tokens=num_prompt_tokens,
        )

    @classmethod
    def of_bytes(cls, *, num_bytes: int, num_tokens: int, max_model_len: int) -> PromptTooLongError:
        """Tells of a prompt that is not even tokenized."""
        return cls(
            f"This model's maximum context length is {max_model_len} tokens. However, the prompt "
            f"has {num_bytes} bytes, which are at least {num_tokens} tokens. Reduce the length of "
            "the prompt."
        )


class NeverFitsError(RequestError):
    """A prompt and its longest answer need more blocks than the whole KV cache has."""

    code: ClassVar[str] = "never_fits"

    def __init__(self, message: str, *, num_needed_blocks: int = 0, num_blocks: int = 0) -> None:
        super().__init__(message)
        self.num_needed_blocks = num_needed_blocks
        self.num_blocks = num_blocks

    @classmethod
    def of_tokens(
        cls, *, num_tokens: int, num_needed_blocks: int, num_blocks: int
    ) -> NeverFitsError:
        """Tells of a prompt and an answer whose blocks were counted."""
        return cls(
            f"{num_tokens} tokens of prompt and answer need {num_needed_blocks} KV-cache blocks, "
            f"but the cache has {num_blocks}; raise --paged-attention-num-blocks or lower "
            "max_tokens",
            num_needed_blocks=num_needed_blocks,
            num_blocks=num_blocks,
        )


class PromptFailedError(RequestError):
    """The engine broke every time that it tried to answer a prompt."""

    code: ClassVar[str] = "engine_error"


class NonFiniteLogitsError(RequestError):
    """The model's scores of the next token are NaN, infinite, or all minus infinity."""

    code: ClassVar[str] = "non_finite_logits"


class StructureFailedError(RequestError):
    """The form that an answer is to have turned out too complex along the way."""

    code: ClassVar[str] = "structure_failed"


class RequestTimeoutError(RequestError):
    """A request was not answered in the time that it may take; what there is of it is kept."""

    code: ClassVar[str] = "timeout"
