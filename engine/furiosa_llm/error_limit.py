"""How many rows may fail before a batch is not worth going on with."""

from __future__ import annotations

import re
from dataclasses import dataclass

MIN_ROWS = 100  # done, before a share of them says anything

_LIMIT = re.compile(r"(?P<number>\d+(?:\.\d+)?)\s*(?P<percent>%?)")


@dataclass(frozen=True, slots=True)
class ErrorLimit:
    """Most rows that may fail: a number of them, or per cent of those done so far."""

    number: float
    is_percent: bool = False

    @classmethod
    def parse(cls, text: str) -> ErrorLimit:
        """Reads `20` or `1.5%`.

        Raises:
            ValueError: It is neither.
        """
        match = _LIMIT.fullmatch(text.strip())
        limit = match and cls(float(match["number"]), is_percent=bool(match["percent"]))
        if not limit or not (
            limit.number <= 100 if limit.is_percent else limit.number.is_integer()
        ):
            raise ValueError(f"{text!r} is no limit; write a number of rows, or a share such as 5%")
        return limit

    def is_exceeded(self, *, num_failed: int, num_done: int) -> bool:
        """Tells whether more rows have failed than may, when all of them are done."""
        limit = self.number * num_done / 100 if self.is_percent else self.number
        return num_failed > limit

    def stops(self, *, num_failed: int, num_done: int) -> bool:
        """Tells whether so many have failed that the batch should end before all are done."""
        is_told = not self.is_percent or num_done >= MIN_ROWS
        return is_told and self.is_exceeded(num_failed=num_failed, num_done=num_done)

    def __str__(self) -> str:
        return f"{self.number:g}{'%' if self.is_percent else ''}"
