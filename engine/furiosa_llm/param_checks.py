"""Checks of single values, with messages that name the parameter and show the value."""

from __future__ import annotations

import math
from dataclasses import dataclass

from furiosa_llm.errors import InvalidParamsError

_MAX_SHOWN = 80


@dataclass(frozen=True, slots=True, kw_only=True)
class Number:
    """What numbers a parameter takes.

    Attributes:
        low: The lowest.
        high: The highest.
        is_low_excluded: Whether only more than the lowest will do.
        is_whole: Whether it has to be a whole number.
        may_be_null: Whether it may be left open.
        wanted: Says the limits in other words.
    """

    low: float = -math.inf
    high: float = math.inf
    is_low_excluded: bool = False
    is_whole: bool = False
    may_be_null: bool = False
    wanted: str | None = None

    def checked(self, name: str, value: object) -> float | None:
        """Returns the value; a whole number also where a table stores it as 3.0.

        Raises:
            InvalidParamsError: It is no such number.
        """
        if value is None and self.may_be_null:
            return None
        kind = "a whole number" if self.is_whole else "a finite number"
        if isinstance(value, int) and not isinstance(value, bool):
            kind += " of at most 63 bits"
        if self.is_whole and isinstance(value, float) and value.is_integer():
            value = int(value)
        is_right = is_int(value) if self.is_whole else is_finite(value)
        require(is_right, name, value, kind + (" or null" if self.may_be_null else ""))
        assert isinstance(value, int | float), "it was checked"
        is_above = value > self.low if self.is_low_excluded else value >= self.low
        require(is_above and value <= self.high, name, value, self.wanted or self._limits())
        return value

    def _limits(self) -> str:
        if math.isinf(self.high):
            return f"at least {self.low}"
        return f"in {'(' if self.is_low_excluded else '['}{self.low}, {self.high}]"


def require(holds: bool, name: str, value: object, wanted: str) -> None:
    """Says what a parameter must be.

    Raises:
        InvalidParamsError: It does not hold.
    """
    if not holds:
        raise InvalidParamsError(f"{name} must be {wanted}, got {shortened(value)}")


def shortened(value: object) -> str:
    """Returns a value as a message can show it."""
    text = repr(value)
    return text if len(text) <= _MAX_SHOWN else text[: _MAX_SHOWN - 3] + "..."


def is_text(value: object) -> bool:
    """Whether it is a text that is not empty."""
    return isinstance(value, str) and value != ""


def is_int(value: object) -> bool:
    """Whether it is a whole number of at most 64 bits, and no truth value."""
    return isinstance(value, int) and not isinstance(value, bool) and abs(value) < 2**63


def is_finite(value: object) -> bool:
    """Whether it is a number, and neither infinite nor NaN."""
    if isinstance(value, float):
        return math.isfinite(value)
    return is_int(value)


def tuple_of(name: str, value: object) -> tuple[object, ...]:
    """Returns a list of any kind as a tuple; nothing is an empty one.

    Raises:
        InvalidParamsError: It is no list.
    """
    if value is None:
        return ()
    if isinstance(value, list | tuple | set | frozenset):
        return tuple(value)
    raise InvalidParamsError(f"{name} must be a list, got {shortened(value)}")
