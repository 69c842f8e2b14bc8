"""Writes the rows that failed, so that they can be answered again."""

from __future__ import annotations

import contextlib
import logging
from pathlib import Path
from types import TracebackType

from furiosa_llm.dataset.durable import durable_file, writing
from furiosa_llm.dataset.json_text import to_json
from furiosa_llm.dataset.record import RawRow
from furiosa_llm.errors import DatasetError

_logger = logging.getLogger(__name__)


class FailedRowsWriter:
    """Writes rows as JSON lines; the file appears under its name when the block ends, anyhow."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._resources = contextlib.ExitStack()

    def __enter__(self) -> FailedRowsWriter:
        self._file = self._resources.enter_context(durable_file(self._path))
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        try:
            self._resources.close()
        except DatasetError as error:
            if exc is None:
                raise
            # What ended the run matters more than its failed rows.
            _logger.warning("%s", error)

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
