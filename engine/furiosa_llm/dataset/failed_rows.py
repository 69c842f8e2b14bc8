"""Writes the rows that failed, so that they can be answered again."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from furiosa_llm.dataset.durable import closed_well, durable_file, writing
from furiosa_llm.dataset.json_text import to_json
from furiosa_llm.dataset.reader import RowSource
from furiosa_llm.dataset.record import RawRow
from furiosa_llm.dataset.saved_parts import RowIndexes


class FailedRowsWriter:
    """Writes rows as JSON lines."""

    def __init__(self, path: Path, file: BinaryIO) -> None:
        self._path = path
        self._file = file

    @classmethod
    @contextlib.contextmanager
    def open(cls, path: Path) -> Iterator[FailedRowsWriter]:
        """Opens a file that appears under its name when the block ends, however it ends.

        Raises:
            DatasetError: It cannot be written.
        """
        with contextlib.ExitStack() as stack:
            file = stack.enter_context(durable_file(path))
            with closed_well(stack.pop_all()):
                yield cls(path, file)

    def write(self, row: RawRow) -> None:
        """Adds a row, with the columns that it was given.

        Of one that could not be read as an object, its place and why are told.

        Raises:
            DatasetError: It cannot be written.
        """
        columns = row.data
        if columns is None:
            columns = {"row_index": row.row_index, "error": row.error}
        with writing(self._path):
            self._file.write(to_json(columns).encode() + b"\n")

    def write_those(self, source: RowSource, failed: RowIndexes) -> None:
        """Adds what an earlier run could not answer, read from the input as far as the last of it.

        Raises:
            DatasetError: It cannot be written, or the input not be read.
        """
        rows = (row for row in source.rows() if row.row_index in failed)
        for row in itertools.islice(rows, len(failed)):
            self.write(row)
