"""A share of an input's rows, so that several machines can divide a run among them."""

from __future__ import annotations

import re
from dataclasses import dataclass

from furiosa_llm.errors import ConfigError

MAX_SHARDS = 65_536

_SHARD = re.compile(r"(\d{1,9})/(\d{1,9})", re.ASCII)


@dataclass(frozen=True, slots=True)
class Shard:
    """Every `count`-th row, beginning with that of index `number - 1`.

    A row keeps its index in the whole input, and with it its random draws.

    Attributes:
        number: Which of the shards, from 1.
        count: How many there are.

    Raises:
        ConfigError: There is no such shard.
    """

    number: int
    count: int

    def __post_init__(self) -> None:
        if not 1 <= self.number <= self.count <= MAX_SHARDS:
            raise ConfigError(
                f"shard {self} does not exist: it must be I/N with 1 <= I <= N <= {MAX_SHARDS}"
            )

    @classmethod
    def parse(cls, text: str) -> Shard:
        """Reads `I/N`.

        Raises:
            ValueError: It is something else.
        """
        match = _SHARD.fullmatch(text.strip())
        if match is None:
            raise ValueError(f"{text!r} is no shard; write I/N, for example 1/4")
        return cls(int(match[1]), int(match[2]))

    def __str__(self) -> str:
        return f"{self.number}/{self.count}"

    def has(self, row_index: int) -> bool:
        """Whether a row of the input is in the shard."""
        return row_index % self.count == self.number - 1

    def num_rows_of(self, num_rows: int) -> int:
        """Returns how many rows of an input of `num_rows` are in the shard."""
        return len(range(self.number - 1, num_rows, self.count))

    def row_indexes(self, start: int, stop: int) -> range:
        """Returns the indexes in the input of the shard's rows [start, stop)."""
        first = self.number - 1
        return range(first + start * self.count, first + stop * self.count, self.count)


WHOLE = Shard(1, 1)
