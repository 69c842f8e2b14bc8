"""How the next token is chosen and when an answer ends."""

from __future__ import annotations

import dataclasses
import enum
from collections.abc import Mapping
from dataclasses import dataclass

from furiosa_llm.errors import InvalidParamsError
from furiosa_llm.logit_bias import checked_bias, parse_bias
from furiosa_llm.options import option, parse_bool, parse_optional, parse_size
from furiosa_llm.param_checks import require, shortened, tuple_of
from furiosa_llm.sampling_limits import NUMBERS, TRUTH_VALUES, check_stops, refuse_beam_search
from furiosa_llm.structured_outputs import StructuredOutputs, checked_structure, parse_structure

GREEDY_TEMPERATURE = 1e-5


class RequestOutputKind(enum.Enum):
    """What a `RequestOutput` holds of an answer that grows."""

    CUMULATIVE = "cumulative"  # all so far, at every step
    DELTA = "delta"  # what is new since the last one
    FINAL = "final"  # one output, when the answer is complete

    @classmethod
    def _missing_(cls, value: object) -> None:
        require(False, "output_kind", value, "one of " + ", ".join(kind.value for kind in cls))


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplingParams:
    """How the next token is chosen and when an answer ends.

    A token's score goes through, in this order: the penalties, `logit_bias`, what `min_tokens` and
    `structured_outputs` forbid, temperature, top-k, top-p, min-p. Log probabilities are those of
    the model itself, before all of these.

    `best_of` answers are drawn, and the n that the model finds likeliest as a whole are returned,
    the likeliest first; outputs of unfinished answers cannot be ranked and are not delivered.

    Where no one gave `max_tokens`, `fits_context` lowers it to what the context leaves.

    Raises:
        InvalidParamsError: A value is of the wrong type or out of range, or values do not go
            together.
    """

    n: int = option("Answers to return for each prompt.", parse=int, default=1)
    best_of: int | None = option(
        "Answers to draw for each prompt; the n with the highest log probability are returned.",
        parse=parse_optional(int),
        default=None,
        metavar="N",
    )
    temperature: float = option(
        "Randomness: 0 takes the likeliest token, 1 draws from the model's own distribution.",
        parse=float,
        default=1.0,
    )
    top_k: int = option(
        "Draw from the K likeliest tokens; -1 or 0 keeps all.", parse=int, default=-1
    )
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
    logit_bias: Mapping[int, float] | None = option(
        "Added to the score of a token, in [-100, 100]; may be given several times.",
        parse=parse_bias,
        default=None,
        multiple=True,
        metavar="ID=BIAS",
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
    logprobs: int | None = option(
        "Log probabilities of each token and of the K likeliest in its place, at most 20.",
        parse=parse_optional(int),
        default=None,
        metavar="K",
    )
    prompt_logprobs: int | None = option(
        "The same for the tokens of the prompt.",
        parse=parse_optional(int),
        default=None,
        metavar="K",
    )
    structured_outputs: StructuredOutputs | None = option(
        "Form that the answer must have, as JSON or in a file: an object with one of json (a "
        "schema), json_object (true), regex, choice (a list) and grammar (in Lark's notation).",
        parse=parse_structure,
        default=None,
        metavar="JSON|@FILE",
    )
    seed: int | None = None
    output_kind: RequestOutputKind = RequestOutputKind.CUMULATIVE
    fits_context: bool = False
    use_beam_search: bool = False  # these three only to say that there is no such thing
    length_penalty: float = 1.0
    early_stopping: bool | str = False

    def __post_init__(self) -> None:
        if isinstance(self.stop, str):
            object.__setattr__(self, "stop", (self.stop,))
        for name, number in NUMBERS.items():
            object.__setattr__(self, name, number.checked(name, getattr(self, name)))
        for name in ("stop", "stop_token_ids"):
            object.__setattr__(self, name, tuple_of(name, getattr(self, name)))
        object.__setattr__(self, "output_kind", RequestOutputKind(self.output_kind))
        object.__setattr__(self, "logit_bias", checked_bias(self.logit_bias))
        object.__setattr__(self, "structured_outputs", checked_structure(self.structured_outputs))
        for name in TRUTH_VALUES:
            require(
                isinstance(getattr(self, name), bool), name, getattr(self, name), "true or false"
            )
        check_stops(self.stop, self.stop_token_ids)
        refuse_beam_search(self.use_beam_search, self.length_penalty, self.early_stopping)
        self._check_limits()
        self._check_combinations()

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

    @property
    def needs_answer(self) -> bool:
        """Whether choosing a token takes all those of the answer before it."""
        return self.has_penalties or self.structured_outputs is not None

    @property
    def num_drawn(self) -> int:
        """Answers that are drawn for each prompt, of which n are returned."""
        return self.n if self.best_of is None else self.best_of

    @property
    def is_ranked(self) -> bool:
        """Whether the answers are put in order once all of them are complete."""
        return self.best_of is not None and self.best_of > 1

    @property
    def is_delivered_whole(self) -> bool:
        """Whether nothing of an answer is handed out before all of it is there."""
        return self.output_kind is RequestOutputKind.FINAL or self.is_ranked

    @property
    def needs_logprobs(self) -> bool:
        """Whether the log probability of each token of the answer has to be known."""
        return self.logprobs is not None or self.is_ranked

    def check_vocabulary(self, vocab_size: int) -> None:
        """Compares the parameters with the model's vocabulary.

        Raises:
            InvalidParamsError: `logit_bias` or `stop_token_ids` has a token that is not in it.
        """
        for name, tokens in (
            ("logit_bias", self.logit_bias or ()),
            ("stop_token_ids", self.stop_token_ids),
        ):
            highest = max(tokens, default=0)
            if highest >= vocab_size:
                raise InvalidParamsError(
                    f"{name} has token {highest}, which is not in the vocabulary of {vocab_size} "
                    "tokens"
                )

    def updated(self, changes: Mapping[str, object]) -> SamplingParams:
        """Returns a copy with some values replaced, as a row's own parameters replace defaults.

        Raises:
            InvalidParamsError: A name is unknown or its value is not allowed.
        """
        unknown = sorted(set(changes) - PARAMETER_NAMES)
        if unknown:
            raise InvalidParamsError(
                f"unknown sampling parameter {shortened(unknown[0])}; known are "
                + ", ".join(sorted(PARAMETER_NAMES))
            )
        if not changes:
            return self
        fits_context = self.fits_context and "max_tokens" not in changes
        # `changes` is checked by __post_init__, value by value.
        return dataclasses.replace(self, **changes, fits_context=fits_context)  # type: ignore[arg-type]

    def _check_limits(self) -> None:
        """Checks the numbers whose limit is another parameter."""
        if self.best_of is not None:
            wanted = f"at least n ({self.n})"
            require(self.best_of >= self.n, "best_of", self.best_of, wanted)
        if self.max_tokens is not None:
            wanted = f"at most max_tokens ({self.max_tokens})"
            require(self.min_tokens <= self.max_tokens, "min_tokens", self.min_tokens, wanted)

    def _check_combinations(self) -> None:
        if self.is_ranked and self.is_greedy:
            raise InvalidParamsError(
                f"best_of must be 1 when using greedy sampling, got {self.best_of}: all answers "
                "would be the same; raise temperature"
            )
        if self.structured_outputs is None:
            return
        for name in ("ignore_eos", "min_tokens"):
            if getattr(self, name):
                raise InvalidParamsError(
                    f"{name} does not go with structured_outputs: the answer ends where its form "
                    "is complete"
                )


PARAMETER_NAMES = frozenset(field.name for field in dataclasses.fields(SamplingParams)) - {
    "output_kind",
    "fits_context",
}
