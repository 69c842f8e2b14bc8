"""Brings rows of two outputs together that have the same place in the input."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from furiosa_llm.errors import DatasetError

_ROW_INDEX = "row_index"


class RowPairs:
    """Iterates over pairs of tables whose rows have the same `row_index`, once.

    Attributes:
        num_alone: How many rows of the first and of the second output had no partner so far.
    """

    def __init__(self, before: Iterator[pa.Table], after: Iterator[pa.Table]) -> None:
        """Takes the tables of two outputs, each of them in order."""
        self.num_alone = [0, 0]
        self._before, self._after = _Rows(before), _Rows(after)

    def __iter__(self) -> Iterator[tuple[pa.Table, pa.Table]]:
        """Yields pairs.

        Raises:
            DatasetError: An output has its rows out of order, or one of them twice.
        """
        while self._before.is_left and self._after.is_left:
            # Up to here the rows of both are loaded.
            bound = min(self._before.last_loaded, self._after.last_loaded)
            before, after = self._before.take_through(bound), self._after.take_through(bound)
            _, ours, theirs = np.intersect1d(
                _indexes(before), _indexes(after), assume_unique=True, return_indices=True
            )
            self.num_alone[0] += len(before) - len(ours)
            self.num_alone[1] += len(after) - len(theirs)
            if len(ours):
                yield before.take(pa.array(ours)), after.take(pa.array(theirs))
        self.num_alone[0] += self._before.count_rest()
        self.num_alone[1] += self._after.count_rest()


class _Rows:
    """The rows of an output that are left, some of them loaded."""

    def __init__(self, tables: Iterator[pa.Table]) -> None:
        self._tables = tables
        self._table: pa.Table | None = None
        self._last = -1
        self._load()

    @property
    def is_left(self) -> bool:
        """Whether there is any; some are loaded then."""
        return self._table is not None

    @property
    def last_loaded(self) -> int:
        """The last row index among those that are loaded."""
        return self._last

    def take_through(self, last: int) -> pa.Table:
        """Takes the loaded rows with an index of at most `last`."""
        assert self._table is not None, "the caller has seen that some are left"
        number = int(np.searchsorted(_indexes(self._table), last, side="right"))
        taken, self._table = self._table.slice(0, number), self._table.slice(number)
        if len(self._table) == 0:
            self._load()
        return taken

    def count_rest(self) -> int:
        """Reads the rest, and returns how many rows it had."""
        number = 0
        while self._table is not None:
            number += len(self._table)
            self._load()
        return number

    def _load(self) -> None:
        self._table = next((table for table in self._tables if len(table)), None)
        if self._table is None:
            return
        indexes = _indexes(self._table)
        if indexes[0] <= self._last or np.any(np.diff(indexes) <= 0):
            raise DatasetError(
                f"rows from {indexes[0]} on are out of order or there twice; compare outputs as "
                "`furiosa-llm run` wrote them"
            )
        self._last = int(indexes[-1])


def _indexes(table: pa.Table) -> npt.NDArray[np.int64]:
    return np.asarray(table.column(_ROW_INDEX).to_numpy())
