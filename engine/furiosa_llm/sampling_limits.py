"""What values the sampling parameters take, each by itself."""

from __future__ import annotations

from collections.abc import Sequence

from furiosa_llm.errors import InvalidParamsError
from furiosa_llm.param_checks import Number, is_int, is_text, require
from furiosa_llm.row_limits import (
    MAX_COMPLETIONS,
    MAX_LOGPROBS,
    MAX_STOP_CHARACTERS,
    MAX_STOPS,
)

MAX_TEMPERATURE = 1_000_000  # far beyond what makes all tokens equally likely, and a float32
MIN_REPETITION_PENALTY = 1e-6  # scores are divided by it, and stay finite

NUMBERS = {
    "n": Number(low=1, high=MAX_COMPLETIONS, is_whole=True),
    "best_of": Number(low=1, high=MAX_COMPLETIONS, is_whole=True, may_be_null=True),
    "temperature": Number(low=0, high=MAX_TEMPERATURE),
    "top_k": Number(low=-1, is_whole=True, wanted="at least 1, or -1 or 0 for all tokens"),
    "top_p": Number(low=0, high=1, is_low_excluded=True),
    "min_p": Number(low=0, high=1),
    "repetition_penalty": Number(low=MIN_REPETITION_PENALTY, high=2),
    "presence_penalty": Number(low=-2, high=2),
    "frequency_penalty": Number(low=-2, high=2),
    "max_tokens": Number(low=1, is_whole=True, may_be_null=True),
    "min_tokens": Number(low=0, is_whole=True),
    "logprobs": Number(low=0, high=MAX_LOGPROBS, is_whole=True, may_be_null=True),
    "prompt_logprobs": Number(low=0, high=MAX_LOGPROBS, is_whole=True, may_be_null=True),
    "seed": Number(is_whole=True, may_be_null=True),
    "length_penalty": Number(),
}
TRUTH_VALUES = (
    "include_stop_str_in_output",
    "ignore_eos",
    "skip_special_tokens",
    "use_beam_search",
)


def check_stops(stop: Sequence[object], stop_token_ids: Sequence[object]) -> None:
    """Checks the texts and the tokens at which an answer ends.

    Raises:
        InvalidParamsError: They are none, or too many.
    """
    require(all(map(is_text, stop)), "stop", stop, "a text or a list of texts, none of them empty")
    require(len(stop) <= MAX_STOPS, "stop", stop, f"at most {MAX_STOPS} strings")
    for text in stop:
        wanted = f"of texts of at most {MAX_STOP_CHARACTERS} characters"
        require(isinstance(text, str) and len(text) <= MAX_STOP_CHARACTERS, "stop", text, wanted)
    name, token_ids = "stop_token_ids", stop_token_ids
    are_ids = all(isinstance(token, int) and is_int(token) and token >= 0 for token in token_ids)
    require(are_ids, name, token_ids, "a list of token ids")
    require(len(token_ids) <= MAX_STOPS, name, token_ids, f"at most {MAX_STOPS} ids")


def refuse_beam_search(
    use_beam_search: bool, length_penalty: object, early_stopping: object
) -> None:
    """Refuses to search for beams, and what has a meaning there only.

    Raises:
        InvalidParamsError: One of them is not at the value that asks for nothing.
    """
    if use_beam_search:
        raise InvalidParamsError(
            "beam search is not offered: leave use_beam_search out, and set best_of for the "
            "likeliest of several drawn answers"
        )
    for name, asks in (
        ("length_penalty", length_penalty != 1),
        ("early_stopping", early_stopping is not False),
    ):
        if asks:
            raise InvalidParamsError(
                f"{name} has no meaning without beam search, which is not offered; leave it out"
            )
