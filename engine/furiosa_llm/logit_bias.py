"""What is added to the scores of single tokens."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

from furiosa_llm.errors import InvalidParamsError
from furiosa_llm.param_checks import is_finite, is_int, require, shortened
from furiosa_llm.row_limits import MAX_BIASES

MAX_BIAS = 100
_MAX_DIGITS = 18


class LogitBias(Mapping[int, float]):
    """Biases by token id. It cannot be changed, so that it can be part of a key."""

    __slots__ = ("_values",)

    def __init__(self, values: Iterable[tuple[int, float]]) -> None:
        """Keeps the biases in order of the token ids."""
        self._values = dict(sorted(values))

    def __getitem__(self, token_id: int) -> float:
        return self._values[token_id]

    def __iter__(self) -> Iterator[int]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)

    def __hash__(self) -> int:
        return hash(tuple(self._values.items()))

    def __repr__(self) -> str:
        return repr(self._values)


def checked_bias(value: object) -> LogitBias | None:
    """Reads biases from a mapping or from pairs. Token ids may be text, as in JSON objects.

    Entries without a value do not count: a table has them for the tokens of its other rows.

    Raises:
        InvalidParamsError: It is neither, or a token id or a bias makes no sense.
    """
    if value is None:
        return None
    if isinstance(value, LogitBias):
        return value
    biases: dict[int, float] = {}
    for key, bias in _pairs(value):
        if bias is None:
            continue
        token_id = _token_id(key)
        require(token_id not in biases, "logit_bias", value, "given once for each token")
        require(len(biases) < MAX_BIASES, "logit_bias", value, f"of at most {MAX_BIASES} tokens")
        biases[token_id] = _bias(bias)
    return LogitBias(biases.items()) if biases else None


def parse_bias(text: str) -> tuple[int, float]:
    """Reads `ID=BIAS`.

    Raises:
        ValueError: It is something else.
    """
    token_id, separator, bias = text.partition("=")
    if not separator:
        raise ValueError(f"{text!r} is not a token and its bias; write for example 42=-100")
    return _token_id(token_id.strip()), _bias(float(bias))


def _pairs(value: object) -> Iterable[tuple[object, object]]:
    if isinstance(value, Mapping):
        return value.items()
    if isinstance(value, list | tuple) and all(
        isinstance(pair, list | tuple) and len(pair) == 2 for pair in value
    ):
        return ((pair[0], pair[1]) for pair in value)
    raise InvalidParamsError(
        f"logit_bias must be an object of token ids and numbers, got {shortened(value)}"
    )


def _token_id(key: object) -> int:
    if isinstance(key, str) and key.isascii() and key.isdigit() and len(key) <= _MAX_DIGITS:
        key = int(key)
    if not isinstance(key, int) or not is_int(key) or key < 0:
        raise InvalidParamsError(f"logit_bias has {shortened(key)}, which is no token id")
    return key


def _bias(bias: object) -> float:
    if not isinstance(bias, int | float) or not is_finite(bias) or abs(bias) > MAX_BIAS:
        raise InvalidParamsError(
            f"logit_bias must be in [-{MAX_BIAS}, {MAX_BIAS}], got {shortened(bias)}"
        )
    return float(bias)
