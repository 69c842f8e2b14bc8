"""Checks and tokenizes the prompts that come to the engine."""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Mapping, Sequence

from furiosa_llm.engine_limits import EngineLimits
from furiosa_llm.errors import InvalidParamsError, InvalidRowError
from furiosa_llm.execution.grammars import Grammars
from furiosa_llm.param_checks import require
from furiosa_llm.request import TokenizedPrompt
from furiosa_llm.sampling_params import SamplingParams
from furiosa_llm.scheduling.admission import check_fits
from furiosa_llm.tokenization import Tokenizer

Prompt = str | Mapping[str, object]


class PromptIntake:
    """Makes of what a caller gives what an engine core takes."""

    def __init__(self, tokenizer: Tokenizer, limits: EngineLimits) -> None:
        self._tokenizer = tokenizer
        self._limits = limits
        self._vocab_size = limits.model_info.vocab_size
        self._grammars = Grammars(lambda: tokenizer, limits.model_info)

    def take(
        self, request_id: str, prompt: Prompt, params: SamplingParams, *, arrival_time: float
    ) -> TokenizedPrompt:
        """Tokenizes a prompt and makes sure that it can be answered.

        Raises:
            RequestError: It is empty or malformed, too long for the context, or never fits the KV
                cache, or the parameters do not go with the model.
        """
        text, token_ids = self._tokenize(prompt)
        self.check_params(params)
        num_left = max(self._limits.longest_sequence - len(token_ids), 1)
        max_tokens = num_left if params.max_tokens is None else params.max_tokens
        if params.fits_context:
            max_tokens = min(max_tokens, num_left)
        if params.min_tokens > max_tokens:
            raise InvalidParamsError(
                f"min_tokens is {params.min_tokens}, but the prompt of {len(token_ids)} tokens "
                f"leaves room for {max_tokens}"
            )
        check_fits(
            num_prompt_tokens=len(token_ids),
            max_tokens=max_tokens,
            max_model_len=self._limits.model_info.max_model_len,
            cache_config=self._limits.cache_config,
        )
        return TokenizedPrompt(
            request_id=request_id,
            text=text,
            prompt_token_ids=token_ids,
            sampling_params=params,
            max_tokens=max_tokens,
            arrival_time=arrival_time,
        )

    def check_params(self, params: SamplingParams) -> None:
        """Makes sure that sampling parameters go with the model.

        Raises:
            InvalidParamsError: They are of another type, a token is not in the vocabulary, or a
                form does not compile.
        """
        require(isinstance(params, SamplingParams), "sampling_params", params, "SamplingParams")
        params.check_vocabulary(self._vocab_size)
        if params.structured_outputs is not None:
            self._grammars.check(params.structured_outputs)

    def _tokenize(self, prompt: Prompt) -> tuple[str | None, Sequence[int]]:
        parts = prompt if isinstance(prompt, Mapping) else {"prompt": prompt}
        text = parts.get("prompt")
        token_ids = parts.get("prompt_token_ids")
        if token_ids is not None:
            return text if isinstance(text, str) else None, self._checked(token_ids)
        if not isinstance(text, str):
            raise InvalidRowError(
                "a prompt must be a text, {'prompt': text} or {'prompt_token_ids': [...]}, got "
                f"{repr(prompt)[:80]}"
            )
        self._tokenizer.check_length(text, max_num_tokens=self._limits.model_info.max_model_len)
        try:
            return text, self._checked(self._tokenizer.encode(text))
        except TypeError as error:  # half of a surrogate pair
            raise InvalidRowError(f"the prompt is no Unicode text: {text[:80]!r}") from error

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
        if lowest < 0 or highest >= self._vocab_size:
            worst = lowest if lowest < 0 else highest
            raise InvalidRowError(
                f"token id {worst} is not in the vocabulary of {self._vocab_size} tokens"
            )
        return packed
