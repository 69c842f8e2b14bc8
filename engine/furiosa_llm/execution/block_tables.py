"""The block tables of a step, as numbers on the host."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from furiosa_llm.scheduler_output import ScheduledRequest


class BlockTables:
    """The tables of the last step, of which the next one changes only the rows that are new.

    Most requests of a step were in the same place of the one before, with the same blocks: there
    are as many numbers as blocks in use, and few of them change.
    """

    def __init__(self) -> None:
        self._rows: list[tuple[int, ...]] = []
        self._table = np.zeros((0, 0), np.int32)

    def of(
        self, requests: Sequence[ScheduledRequest], *, num_columns: int | None = None
    ) -> np.ndarray:
        """Returns the table of each request's blocks; the next call changes it.

        Args:
            requests: R of them.
            num_columns: M; as many as the longest table has if not given.

        Returns:
            [R, M] int32, padded with 0.
        """
        rows = [request.block_ids for request in requests]
        shape = len(rows), num_columns or max(map(len, rows))
        if self._table.shape != shape:
            self._table = np.zeros(shape, np.int32)
            self._rows = [()] * len(rows)
        for index, (row, last) in enumerate(zip(rows, self._rows, strict=True)):
            if row is not last:
                self._table[index, : len(row)] = row
                self._table[index, len(row) : len(last)] = 0
        self._rows = rows
        return self._table
