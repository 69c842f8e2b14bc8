"""Reads the parts that an earlier run left, and leaves out what is damaged."""

from __future__ import annotations

import logging
import re
import shutil
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from furiosa_llm.dataset.durable import writing
from furiosa_llm.dataset.parts import PartInfo, read_part_info, write_tables
from furiosa_llm.errors import DatasetError

_PART = re.compile(r"part-(\d+)\.parquet")
_LEFTOVER = re.compile(r".*\.tmp|merged|merged\.parquet|merge-.*")

_logger = logging.getLogger(__name__)


class RowIndexes:
    """A set of row indexes, which takes a byte for each row of the input."""

    def __init__(self) -> None:
        self._flags: npt.NDArray[np.bool_] = np.zeros(0, dtype=np.bool_)

    def __contains__(self, row_index: int) -> bool:
        return row_index < len(self._flags) and bool(self._flags[row_index])

    def __len__(self) -> int:
        return int(np.count_nonzero(self._flags))

    def add(self, indexes: npt.NDArray[np.int64]) -> None:
        """Adds row indexes.

        Raises:
            ValueError: One is there already, or comes twice, or is below 0.
        """
        if len(np.unique(indexes)) < len(indexes) or np.min(indexes, initial=0) < 0:
            raise ValueError("a row is in it twice")
        needed = int(np.max(indexes, initial=-1)) + 1
        if needed > len(self._flags):
            grown = np.zeros(max(needed, 2 * len(self._flags)), dtype=np.bool_)
            grown[: len(self._flags)] = self._flags
            self._flags = grown
        if self._flags[indexes].any():
            raise ValueError("a row of it is in another part, too")
        self._flags[indexes] = True


@dataclass(slots=True)
class SavedRows:
    """The rows that an earlier run finished.

    Attributes:
        parts: The parts that hold them.
        done: Their indexes.
        failed: Those of the failed ones among them.
        error_counts: How many failed, by `error_code`.
        num_prompt_tokens: Tokens of their prompts.
        num_output_tokens: Tokens of their answers.
        next_number: Of the next part.
    """

    parts: list[PartInfo] = field(default_factory=list)
    done: RowIndexes = field(default_factory=RowIndexes)
    failed: RowIndexes = field(default_factory=RowIndexes)
    error_counts: Counter[str] = field(default_factory=Counter)
    num_prompt_tokens: int = 0
    num_output_tokens: int = 0
    next_number: int = 0

    def add(self, info: PartInfo, rows: pa.Table) -> None:
        """Adds the rows of a part.

        Raises:
            ValueError: One is there already.
        """
        self.done.add(rows.column("row_index").to_numpy())
        failed = rows.filter(pc.is_valid(rows.column("error_code")))
        self.failed.add(failed.column("row_index").to_numpy())
        self.parts.append(info)
        self.error_counts.update(failed.column("error_code").to_pylist())
        self.num_prompt_tokens += pc.sum(rows.column("num_prompt_tokens")).as_py() or 0
        self.num_output_tokens += pc.sum(rows.column("num_output_tokens")).as_py() or 0


_COUNTED = ["row_index", "error_code", "num_prompt_tokens", "num_output_tokens"]


def load_parts(folder: Path, schema: pa.Schema, *, drop_failed: bool) -> SavedRows:
    """Reads every part whole; a damaged one is removed, so that its rows are done again.

    Args:
        folder: Where they are; what else a dead run left half done there is removed.
        schema: That the parts must have.
        drop_failed: Take failed rows out of the parts, so that they are done again, too.

    Raises:
        DatasetError: A part cannot be read for a reason that may pass, or not be changed.
    """
    saved = SavedRows()
    with writing(folder):
        names = sorted(path.name for path in folder.iterdir())
        remove_leftovers(folder)
    for name in names:
        match = _PART.fullmatch(name)
        if match is None:
            continue
        saved.next_number = max(saved.next_number, int(match[1]) + 1)
        path = folder / name
        try:
            info, rows = _read(path, schema)
            if drop_failed and rows.column("error_code").null_count < len(rows):
                info, rows = _without_failed(info, rows, schema)
            if len(rows):
                saved.add(info, rows)
        except (OSError, pa.ArrowException, ValueError, KeyError, TypeError) as error:
            if getattr(error, "errno", None) is not None:
                raise DatasetError(f"{path}: cannot be read: {error}") from error
            _logger.warning("%s is damaged, its rows are done again: %s", path, error)
            with writing(path):
                path.unlink()
    return saved


def remove_leftovers(folder: Path) -> None:
    """Removes what a dead run left half done."""
    for path in folder.iterdir():
        if not _LEFTOVER.fullmatch(path.name):
            continue
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink()


def has_parts(folder: Path) -> bool:
    """Tells whether a folder holds any finished row."""
    return folder.is_dir() and any(_PART.fullmatch(path.name) for path in folder.iterdir())


def _read(path: Path, schema: pa.Schema) -> tuple[PartInfo, pa.Table]:
    """Reads all of a part, which checks it, and returns what is counted."""
    info = read_part_info(path)
    with _opened(path) as file:
        if not file.schema_arrow.equals(schema):
            raise ValueError("its columns are those of another version of this program")
        rows = pa.concat_tables(
            [table.select(_COUNTED) for table in _groups(file)], promote_options="none"
        )
    indexes = rows.column("row_index").to_numpy()
    if len(rows) != info.num_rows or np.any(np.diff(indexes) <= 0):
        raise ValueError(f"its {len(rows)} rows are not the {info.num_rows} that it tells of")
    return info, rows


def _without_failed(info: PartInfo, rows: pa.Table, schema: pa.Schema) -> tuple[PartInfo, pa.Table]:
    kept = rows.filter(pc.is_null(rows.column("error_code")))
    if not len(kept):
        with writing(info.path):
            info.path.unlink()
        return info, kept
    indexes = kept.column("row_index").to_numpy()
    changed = replace(
        info, num_rows=len(kept), first_row=int(indexes[0]), last_row=int(indexes[-1])
    )
    with _opened(info.path) as file:
        write_tables(
            changed,
            schema,
            (table.filter(pc.is_null(table.column("error_code"))) for table in _groups(file)),
        )
    return changed, kept


def _opened(path: Path) -> pq.ParquetFile:
    return pq.ParquetFile(path, pre_buffer=False, page_checksum_verification=True)


def _groups(file: pq.ParquetFile) -> Iterator[pa.Table]:
    for index in range(file.num_row_groups):
        yield file.read_row_group(index, use_threads=False)
