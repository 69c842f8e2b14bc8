"""How the next token is chosen and when an answer ends."""

from __future__ import annotations

import dataclasses
import enum
import math
from collections.abc import Mapping
from dataclasses import dataclass

from furiosa_llm.errors import InvalidParamsError
from furiosa_llm.options import option, parse_bool, parse_optional, parse_size

GREEDY_TEMPERATURE = 1e-5
MAX_STOP_STRINGS = 64
MAX_COMPLETIONS = 1024


class RequestOutputKind(enum.Enum):
    """What a `RequestOutput` holds of an answer that grows."""

    CUMULATIVE = "cumulative"  # all so far, at every step
    DELTA = "delta"  # what is new since the last one
    FINAL = "final"  # one output, when the answer is complete


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplingParams:
    """How the next token is chosen and when an answer ends.

    Raises:
        InvalidParamsError: A value is of the wrong type or out of range.
    """

    n: int = option("Answers to draw for each prompt.", parse=int, default=1)
    temperature: float = option(
        "Randomness: 0 takes the likeliest token, 1 draws from the model's own distribution.",
        parse=float,
        default=1.0,
    )
    top_k: int = option("Draw from the K likeliest tokens; -1 keeps all.", parse=int, default=-1)
    top_p: float = option(
        "Draw from the likeliest tokens whose probabilities reach P, in (0, 1].",
        parse=float,
        default=1.0,
    )
    min_p: float = option(
        "Drop tokens less likely than P times the likeliest, in [0, 1].", parse=float, default=0.0
    )
    repetition_penalty: float = option(
        "Divides the scores of tokens seen in prompt or answer, in (0, 2]; 1 is off.",
        parse=float,
        default=1.0,
    )
    presence_penalty: float = option(
        "Subtracted once from the score of each token of the answer, in [-2, 2].",
        parse=float,
        default=0.0,
    )
    frequency_penalty: float = option(
        "Subtracted from a token's score each time the answer has it, in [-2, 2].",
        parse=float,
        default=0.0,
    )
    max_tokens: int | None = option(
        "Most tokens of an answer; `none` is the rest of the context.",
        parse=parse_optional(parse_size),
        default=16,
    )
    min_tokens: int = option(
        "Tokens before an answer may end by itself.", parse=parse_size, default=0
    )
    stop: tuple[str, ...] = option(
        "End the answer before this string; may be given several times.",
        default=(),
        multiple=True,
        metavar="TEXT",
    )
    stop_token_ids: tuple[int, ...] = option(
        "End the answer at this token; may be given several times.",
        parse=int,
        default=(),
        multiple=True,
        metavar="ID",
    )
    include_stop_str_in_output: bool = option(
        "Keep the stop string in the text.", parse=parse_bool, default=False
    )
    ignore_eos: bool = option(
        "Go on past the model's end-of-sequence token.", parse=parse_bool, default=False
    )
    skip_special_tokens: bool = option(
        "Leave special tokens out of the text.", parse=parse_bool, default=True
    )
    seed: int | None = None
    output_kind: RequestOutputKind = RequestOutputKind.CUMULATIVE

    def __post_init__(self) -> None:
        if isinstance(self.stop, str):
            object.__setattr__(self, "stop", (self.stop,))
        for name in _INTEGERS:
            value = getattr(self, name)
            if isinstance(value, float) and value.is_integer():  # 3.0, as tables store it
                object.__setattr__(self, name, int(value))
        for name in ("stop", "stop_token_ids"):
            object.__setattr__(self, name, _tuple_of(name, getattr(self, name)))
        self._check_types()
        self._check_ranges()

    @property
    def is_greedy(self) -> bool:
        """Whether the likeliest token is always taken."""
        return self.temperature < GREEDY_TEMPERATURE or self.top_k == 1

    @property
    def has_penalties(self) -> bool:
        """Whether a token's score depends on the tokens before it."""
        return (
            self.repetition_penalty != 1.0
            or self.presence_penalty != 0.0
            or self.frequency_penalty != 0.0
        )

    def updated(self, changes: Mapping[str, object]) -> SamplingParams:
        """Returns a copy with some values replaced, as a row's own parameters replace defaults.

        Raises:
            InvalidParamsError: A name is unknown or its value is not allowed.
        """
        unknown = sorted(set(changes) - PARAMETER_NAMES)
        if unknown:
            raise InvalidParamsError(
                f"unknown sampling parameter {unknown[0]!r}; known are "
                + ", ".join(sorted(PARAMETER_NAMES))
            )
        # `changes` is checked by __post_init__, value by value.
        return dataclasses.replace(self, **changes) if changes else self  # type: ignore[arg-type]

    def _check_types(self) -> None:
        for name in _INTEGERS:
            value = getattr(self, name)
            may_be_null = name in ("max_tokens", "seed")
            wanted = "a whole number or null" if may_be_null else "a whole number"
            _require(_is_int(value) or (may_be_null and value is None), name, value, wanted)
        for name in _FLOATS:
            _require(_is_finite(getattr(self, name)), name, getattr(self, name), "a finite number")
        for name in ("include_stop_str_in_output", "ignore_eos", "skip_special_tokens"):
            value = getattr(self, name)
            _require(isinstance(value, bool), name, value, "true or false")
        _require(
            all(_is_text(text) for text in self.stop),
            "stop",
            self.stop,
            "a text or a list of texts, none of them empty",
        )
        _require(
            all(_is_int(token) and token >= 0 for token in self.stop_token_ids),
            "stop_token_ids",
            self.stop_token_ids,
            "a list of token ids",
        )

    def _check_ranges(self) -> None:
        max_tokens = self.max_tokens
        checks = (
            ("n", 1 <= self.n <= MAX_COMPLETIONS, f"in [1, {MAX_COMPLETIONS}]"),
            ("temperature", self.temperature >= 0, "at least 0"),
            ("top_k", self.top_k >= -1, "at least 1, or -1 for all tokens"),
            ("top_p", 0 < self.top_p <= 1, "in (0, 1]"),
            ("min_p", 0 <= self.min_p <= 1, "in [0, 1]"),
            ("repetition_penalty", 0 < self.repetition_penalty <= 2, "in (0, 2]"),
            ("presence_penalty", -2 <= self.presence_penalty <= 2, "in [-2, 2]"),
            ("frequency_penalty", -2 <= self.frequency_penalty <= 2, "in [-2, 2]"),
            ("max_tokens", max_tokens is None or max_tokens >= 1, "at least 1"),
            ("min_tokens", self.min_tokens >= 0, "at least 0"),
            (
                "min_tokens",
                max_tokens is None or self.min_tokens <= max_tokens,
                f"at most max_tokens ({max_tokens})",
            ),
            ("stop", len(self.stop) <= MAX_STOP_STRINGS, f"at most {MAX_STOP_STRINGS} strings"),
            (
                "stop_token_ids",
                len(self.stop_token_ids) <= MAX_STOP_STRINGS,
                f"at most {MAX_STOP_STRINGS} ids",
            ),
        )
        for name, holds, wanted in checks:
            _require(holds, name, getattr(self, name), wanted)


PARAMETER_NAMES = frozenset(
    field.name for field in dataclasses.fields(SamplingParams) if field.name != "output_kind"
)
_INTEGERS = ("n", "top_k", "max_tokens", "min_tokens", "seed")
_FLOATS = (
    "temperature",
    "top_p",
    "min_p",
    "repetition_penalty",
    "presence_penalty",
    "frequency_penalty",
)


def _require(holds: bool, name: str, value: object, wanted: str) -> None:
    if not holds:
        raise InvalidParamsError(f"{name} must be {wanted}, got {_shortened(value)}")


def _shortened(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."


def _is_text(value: object) -> bool:
    return isinstance(value, str) and value != ""


def _is_int(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and abs(value) < 2**63


def _is_finite(value: object) -> bool:
    if isinstance(value, float):
        return math.isfinite(value)
    return _is_int(value)


def _tuple_of(name: str, value: object) -> tuple[object, ...]:
    if value is None:
        return ()
    if isinstance(value, list | tuple | set | frozenset):
        return tuple(value)
    raise InvalidParamsError(f"{name} must be a list, got {_shortened(value)}")
