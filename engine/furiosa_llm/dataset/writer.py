"""Writes answers in bounded memory while the run goes on, and loses no finished row."""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType

import pyarrow as pa

from furiosa_llm.dataset.answer import AnswerRow
from furiosa_llm.dataset.declared import declared_types
from furiosa_llm.dataset.durable import sync_folder, writing
from furiosa_llm.dataset.final import write_final_file, write_final_folder
from furiosa_llm.dataset.manifest import Manifest
from furiosa_llm.dataset.parts import PartInfo, joined_columns, write_part
from furiosa_llm.dataset.run_lock import RunLock
from furiosa_llm.dataset.run_start import Resume, RunStart, empty_folder, start_run
from furiosa_llm.dataset.saved_parts import SavedRows, has_parts
from furiosa_llm.dataset.schema import output_names
from furiosa_llm.dataset.target import OutputTarget, check_output, check_replaceable
from furiosa_llm.device_mesh import counted
from furiosa_llm.errors import DatasetError, TooManyErrorsError

DEFAULT_ROWS_PER_PART = 8192
DEFAULT_SECONDS_PER_PART = 60.0

_MAX_WAITING_BYTES = 64 << 20
_LOGPROB_BYTES = 200  # one of the several answers to a prompt, which are not packed

_logger = logging.getLogger(__name__)


class AnswerWriter:
    """Writes answers in any order; the output appears under its name when it is complete.

    Use it as a context manager. Leaving it without `finish` keeps the rows written so far in the
    folder `<output>.parts`, from which another run can go on.
    """

    def __init__(
        self,
        output: str | Path,
        *,
        manifest: Manifest,
        overwrite: bool = False,
        resume: Resume | None = None,
        rows_per_part: int = DEFAULT_ROWS_PER_PART,
        seconds_per_part: float = DEFAULT_SECONDS_PER_PART,
        carried_schema: pa.Schema | None = None,
    ) -> None:
        """Prepares a writer; nothing is touched before the block is entered.

        Args:
            output: The file; a folder if it ends in a slash or is one.
            manifest: What the run is.
            overwrite: Whether to replace an output, and to drop the rows of an unfinished run
                that is not resumed.
            resume: How to go on with an earlier run; None to begin a new one.
            rows_per_part: Most rows to hold in memory.
            seconds_per_part: Longest time for which a finished row is only in memory.
            carried_schema: Types of the input's own columns, where the input declares them.
        """
        self._output = output
        self._target = OutputTarget.of(output)
        self._overwrite = overwrite
        self._resume = resume
        self._rows_per_part = rows_per_part
        self._seconds_per_part = seconds_per_part
        self._carried_schema = carried_schema
        self._declared = declared_types(carried_schema)
        self._waiting: list[AnswerRow] = []
        self._waiting_bytes = 0
        self._waiting_since = 0.0
        self._start = RunStart(manifest=manifest)
        self._next_number = 0
        self._lock = RunLock(self._target.parts_folder)

    def __enter__(self) -> AnswerWriter:
        may_exist = self._overwrite or self._resume is not None
        check_output(self._output, (), overwrite=may_exist)
        with writing(self._target.parts_folder):
            try:
                self._lock.acquire()
            except BlockingIOError as error:
                raise DatasetError(
                    f"{self._target.path} is being written by another run; wait for its end, or "
                    "choose another output"
                ) from error
        try:
            self._start = start_run(
                self._target,
                self._start.manifest,
                self._declared,
                overwrite=self._overwrite,
                resume=self._resume,
            )
        except BaseException:
            self._leave_folder()
            raise
        self._next_number = self.saved.next_number
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        try:
            self.close_part()
        except DatasetError as error:
            if exc is None:
                raise
            # What ended the run matters more than what it took along.
            _logger.warning("%s lost: %s", _finished(len(self._waiting)), error)
        finally:
            self._leave_folder()
        if exc is not None and self.num_saved:
            _logger.warning(
                "%s in %s; %s goes on",
                _finished(self.num_saved),
                self._target.parts_folder,
                "--resume with a higher --max-errors, or with --retry-failed,"
                if isinstance(exc, TooManyErrorsError)
                else "the same command with --resume",
            )

    @property
    def manifest(self) -> Manifest:
        """What the run is; one that is resumed began when it began first."""
        return self._start.manifest

    @property
    def saved(self) -> SavedRows:
        """The rows of an earlier run that are finished."""
        return self._start.saved

    @property
    def is_complete(self) -> bool:
        """Whether the output is there already, and nothing is left to do."""
        return self._start.is_complete

    @property
    def num_saved(self) -> int:
        """Rows that are on the disk."""
        return sum(part.num_rows for part in self.saved.parts)

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
        if not self._waiting:
            self._waiting_since = time.monotonic()
        self._waiting.append(row)
        self._waiting_bytes += _size(row)
        is_full = len(self._waiting) >= self._rows_per_part
        if is_full or self._waiting_bytes >= _MAX_WAITING_BYTES:
            self.close_part()

    def checkpoint(self) -> None:
        """Closes a part if a row has waited for it long enough. Call it often.

        Raises:
            DatasetError: The rows cannot be written.
        """
        if self._waiting and time.monotonic() - self._waiting_since >= self._seconds_per_part:
            self.close_part()

    def close_part(self) -> None:
        """Makes the rows that are only in memory durable.

        Raises:
            DatasetError: They cannot be written.
        """
        if not self._waiting:
            return
        path = self._target.parts_folder / f"part-{self._next_number:06d}.parquet"
        self._parts.append(write_part(path, self._waiting, self._declared))
        self._next_number += 1
        self._waiting = []
        self._waiting_bytes = 0

    def finish(self, metadata: Mapping[str, str]) -> None:
        """Merges all rows into the output and removes the parts.

        Args:
            metadata: Kept in the output next to the manifest. A manifest in it, as
                `Manifest.metadata` gives it, replaces that of the run's start.

        Raises:
            DatasetError: The output cannot be written; the parts are kept.
        """
        self.close_part()
        metadata = {**self.manifest.ended().metadata(), **metadata}
        folder = self._target.parts_folder
        write = write_final_folder if self._target.is_folder else write_final_file
        self._put(write(folder, self._parts, self._carried_schema, metadata, self.manifest.shard))
        self._remove_folder()

    @property
    def _parts(self) -> list[PartInfo]:
        return self.saved.parts

    def _put(self, merged: Path) -> None:
        """Gives the merged output its name, in the place of an earlier one if there is one."""
        path = self._target.path
        check_replaceable(self._target, overwrite=self._start.may_replace)
        with writing(path):
            if path.is_dir() and any(path.iterdir()):
                # A folder cannot take the place of one that holds files in a single step.
                path.rename(self._target.parts_folder / "replaced")
            merged.replace(path)
            sync_folder(path.parent)

    def _leave_folder(self) -> None:
        """Gives the folder up, and removes it if there is nothing in it to go on from."""
        is_needed = not self.is_complete and has_parts(self._target.parts_folder)
        if self._lock.is_held and not is_needed:
            self._remove_folder()
        self._lock.release()

    def _remove_folder(self) -> None:
        folder = self._target.parts_folder
        try:
            empty_folder(folder)
        except OSError as error:
            _logger.warning("%s cannot be removed, but is needed no more: %s", folder, error)
        self._lock.release()
        with contextlib.suppress(OSError):  # the next run may have begun in it
            folder.rmdir()


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


def _finished(num_rows: int) -> str:
    return counted(num_rows, "finished row is", "finished rows are")
