"""Writes answers in bounded memory while the run goes on, and loses no finished row."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType

import pyarrow as pa

from furiosa_llm.dataset.answer import AnswerRow
from furiosa_llm.dataset.declared import declared_types
from furiosa_llm.dataset.durable import durable_file, sync_folder, writing
from furiosa_llm.dataset.final import write_final_file, write_final_folder
from furiosa_llm.dataset.manifest import Manifest
from furiosa_llm.dataset.parts import PartInfo, joined_columns, write_part
from furiosa_llm.dataset.run_lock import RunLock
from furiosa_llm.dataset.schema import output_names
from furiosa_llm.dataset.target import OutputTarget, check_output, check_replaceable, unfinished_run
from furiosa_llm.errors import DatasetError

PARTS_MANIFEST = "manifest.json"

_MAX_WAITING_BYTES = 64 << 20
_LOGPROB_BYTES = 200  # one of the several answers to a prompt, which are not packed

_logger = logging.getLogger(__name__)


class AnswerWriter:
    """Writes answers in any order; the output appears under its name when it is complete.

    Use it as a context manager. Leaving it without `finish` keeps the rows written so far in the
    folder `<output>.parts`.
    """

    def __init__(
        self,
        output: str | Path,
        *,
        manifest: Manifest,
        overwrite: bool = False,
        rows_per_part: int = 8192,
        carried_schema: pa.Schema | None = None,
    ) -> None:
        """Prepares a writer; nothing is touched before the block is entered.

        Args:
            output: The file; a folder if it ends in a slash or is one.
            manifest: What the run is.
            overwrite: Whether to replace an output, and to drop the rows of an unfinished run.
            rows_per_part: Rows to hold in memory.
            carried_schema: Types of the input's own columns, where the input declares them.
        """
        self._output = output
        self._target = OutputTarget.of(output)
        self._manifest = manifest
        self._overwrite = overwrite
        self._rows_per_part = rows_per_part
        self._carried_schema = carried_schema
        self._declared = declared_types(carried_schema)
        self._waiting: list[AnswerRow] = []
        self._waiting_bytes = 0
        self._parts: list[PartInfo] = []
        self._lock = RunLock(self._target.parts_folder)

    def __enter__(self) -> AnswerWriter:
        check_output(self._output, (), overwrite=self._overwrite)
        folder = self._target.parts_folder
        with writing(folder):
            if self._overwrite and folder.exists():
                shutil.rmtree(folder)
            try:
                folder.mkdir()
            except FileExistsError as error:
                raise unfinished_run(self._target) from error
            self._lock.acquire()
            sync_folder(folder.parent)
        with durable_file(folder / PARTS_MANIFEST) as file:
            file.write(self._manifest.to_json().encode())
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        try:
            self._close_part()
        except DatasetError as error:
            if exc is None:
                raise
            # What ended the run matters more than what it took along.
            _logger.warning("%d finished rows are lost: %s", len(self._waiting), error)
        finally:
            self._lock.release()
        if exc is None:
            return
        if self._parts:
            num_rows = sum(part.num_rows for part in self._parts)
            _logger.warning("%d finished rows are in %s", num_rows, self._target.parts_folder)
        else:
            # Nothing to keep, and an empty folder would stand in the way of the next run.
            shutil.rmtree(self._target.parts_folder, ignore_errors=True)

    @property
    def renamed(self) -> dict[str, str]:
        """The input's columns that have another name in the output, as far as rows are on disk."""
        names = output_names(joined_columns(self._parts))
        return {name: output_name for name, output_name in names.items() if name != output_name}

    def write(self, row: AnswerRow) -> None:
        """Adds one row; rows may come in any order.

        Raises:
            DatasetError: The rows cannot be written.
        """
        self._waiting.append(row)
        self._waiting_bytes += _size(row)
        is_full = len(self._waiting) >= self._rows_per_part
        if is_full or self._waiting_bytes >= _MAX_WAITING_BYTES:
            self._close_part()

    def finish(self, metadata: Mapping[str, str]) -> None:
        """Merges all rows into the output and removes the parts.

        Args:
            metadata: Kept in the output next to the manifest. A manifest in it, as
                `Manifest.metadata` gives it, replaces that of the run's start.

        Raises:
            DatasetError: The output cannot be written; the parts are kept.
        """
        self._close_part()
        metadata = {**self._manifest.ended().metadata(), **metadata}
        folder = self._target.parts_folder
        write = write_final_folder if self._target.is_folder else write_final_file
        shard = self._manifest.shard
        self._put(write(folder, self._parts, self._carried_schema, metadata, shard))
        try:
            shutil.rmtree(folder)
        except OSError as error:
            _logger.warning("%s cannot be removed, but is needed no more: %s", folder, error)

    def _close_part(self) -> None:
        if not self._waiting:
            return
        path = self._target.parts_folder / f"part-{len(self._parts):06d}.parquet"
        self._parts.append(write_part(path, self._waiting, self._declared))
        self._waiting = []
        self._waiting_bytes = 0

    def _put(self, merged: Path) -> None:
        """Gives the merged output its name, in the place of an earlier one if there is one."""
        path = self._target.path
        check_replaceable(self._target, overwrite=self._overwrite)
        with writing(path):
            if path.is_dir() and any(path.iterdir()):
                # A folder cannot take the place of one that holds files in a single step.
                path.rename(self._target.parts_folder / "replaced")
            merged.replace(path)
            sync_folder(path.parent)


def _size(row: AnswerRow) -> int:
    """About how many bytes of answer and carried text a row holds."""
    size = len(row.text) + 4 * len(row.token_ids)
    for packed in (row.logprobs, row.prompt_logprobs):
        if packed is not None:
            size += packed.num_bytes
    for one in row.completions or ():
        size += len(one.text) + 8 * len(one.token_ids)
        size += _LOGPROB_BYTES * sum(map(len, one.logprobs or ()))
    for value in row.carried.values():
        if isinstance(value, str):
            size += len(value)
    return size
