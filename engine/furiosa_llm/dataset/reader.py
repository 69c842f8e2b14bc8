"""Opens what `--input` names: files, a glob, a folder, standard input or a named dataset."""

from __future__ import annotations

import glob
import itertools
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import pyarrow as pa

from furiosa_llm.dataset.common_schema import common_schema
from furiosa_llm.dataset.hub_input import HUB_PREFIX, HubDataset
from furiosa_llm.dataset.jsonl import (
    GZIP_SUFFIX,
    JSONL_SUFFIXES,
    ZSTD_SUFFIX,
    JsonlFile,
    check_compression,
)
from furiosa_llm.dataset.parquet_input import PARQUET_SUFFIXES, ParquetInput
from furiosa_llm.dataset.record import RawRow
from furiosa_llm.dataset.shard import WHOLE, Shard
from furiosa_llm.dataset.target import FOLDER_MANIFEST, PARTS_SUFFIX
from furiosa_llm.errors import DatasetError
from furiosa_llm.row_limits import MAX_LINE_BYTES

STANDARD_INPUT = "-"

_SUPPORTED = (
    *JSONL_SUFFIXES,
    *(suffix + packed for packed in (GZIP_SUFFIX, ZSTD_SUFFIX) for suffix in JSONL_SUFFIXES),
    *PARQUET_SUFFIXES,
)
_SUPPORTED_TEXT = ".jsonl, .ndjson or .json-lines (also with .gz or .zst), or .parquet"


class InputPart(Protocol):
    """One file, stream or dataset of an input."""

    @property
    def num_rows(self) -> int | None:
        """The number of rows, where it is known without reading them."""

    @property
    def schema(self) -> pa.Schema | None:
        """The types of the columns, where they are known without reading them."""

    def count_rows(self) -> int | None:
        """Counts the rows; None where that would take reading everything twice."""

    def rows(self, first_row_index: int) -> Iterator[RawRow]:
        """Yields the rows, numbered from `first_row_index`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RowSource:
    """The rows of an input.

    Attributes:
        source: What the user wrote.
        paths: The files behind it, in order; none for standard input or a named dataset.
        parts: What the rows come from, in order.
        schema: Types of the columns on which all parts agree, if all of them are Parquet.
        shard: Which of the rows are taken.
    """

    source: str
    paths: tuple[Path, ...]
    parts: tuple[InputPart, ...]
    schema: pa.Schema | None
    shard: Shard = WHOLE

    @property
    def num_rows(self) -> int | None:
        """The number of rows, where it is known without reading them."""
        return self._share(_total(part.num_rows for part in self.parts))

    def count_rows(self) -> int | None:
        """Counts the rows; None where that would take reading everything twice.

        Raises:
            DatasetError: A file cannot be read.
        """
        return self._share(_total(part.count_rows() for part in self.parts))

    def rows(self) -> Iterator[RawRow]:
        """Yields the rows; their numbers count from 0 in the whole input.

        Raises:
            DatasetError: A file cannot be read, or is damaged.
        """
        num_rows = 0
        for part in self.parts:
            for row in part.rows(num_rows):
                num_rows = row.row_index + 1
                if self.shard.has(row.row_index):
                    yield row

    def _share(self, num_rows: int | None) -> int | None:
        return None if num_rows is None else self.shard.num_rows_of(num_rows)


def open_input(
    source: str, *, shard: Shard = WHOLE, max_line_bytes: int = MAX_LINE_BYTES
) -> RowSource:
    """Opens an input without reading its rows.

    Args:
        source: A file, a folder, a glob, `-` for JSONL on standard input, or
            `datasets:NAME[:[CONFIG:]SPLIT]`.
        shard: Which of the rows to take.
        max_line_bytes: A longer line of JSONL becomes a row with an error.

    Raises:
        DatasetError: It does not exist, cannot be read or is of an unknown format.
    """
    parts: tuple[InputPart, ...]
    paths: tuple[Path, ...] = ()
    if source == STANDARD_INPUT:
        parts = (JsonlFile(path=None, max_line_bytes=max_line_bytes),)
    elif source.startswith(HUB_PREFIX):
        parts = (HubDataset.parse(source),)
    else:
        paths = tuple(_files_of(source))
        parts = tuple(_open_file(path, max_line_bytes) for path in paths)
    schema = _schema_of(parts)
    return RowSource(source=source, paths=paths, parts=parts, schema=schema, shard=shard)


def _files_of(source: str) -> list[Path]:
    if not source:
        raise DatasetError("the name of the input is empty; give a file, a folder or -")
    path = Path(source)
    if path.is_dir():
        return _files_in(path)
    if os.path.lexists(path):
        return [path]
    if not glob.has_magic(source):
        raise DatasetError(
            f"{source} does not exist; give a file, a folder, a glob, - for standard input, "
            f"or {HUB_PREFIX}NAME for a dataset of the Hugging Face hub"
        )
    matches = [Path(name) for name in sorted(glob.glob(source, recursive=True))]  # noqa: PTH207
    if not matches:
        raise DatasetError(f"{source} matches no file")
    folders = [_files_in(match) if match.is_dir() else [match] for match in matches]
    return list(dict.fromkeys(itertools.chain.from_iterable(folders)))


def _files_in(folder: Path) -> list[Path]:
    files = list(_walk(folder))
    if not files:
        raise DatasetError(f"{folder} holds no file that ends in {_SUPPORTED_TEXT}")
    return files


def _walk(folder: Path) -> Iterator[Path]:
    """Yields the files that can be read, those of sub-folders too, in order of their names.

    What is hidden, such as _manifest.json, is no data. Nor are sub-folders that a run of this
    program made or is about to make; give them by name.
    """
    try:
        entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
        for entry in entries:
            path = folder / entry.name
            if entry.name.startswith((".", "_")):
                continue
            if entry.is_dir(follow_symlinks=False):
                if not (path / FOLDER_MANIFEST).exists() and path.suffix != PARTS_SUFFIX:
                    yield from _walk(path)
            elif entry.name.lower().endswith(_SUPPORTED):
                yield path
    except OSError as error:
        raise DatasetError(f"{folder}: cannot be read: {error.strerror}") from error


def _open_file(path: Path, max_line_bytes: int) -> InputPart:
    if not path.exists():
        raise DatasetError(f"{path} does not exist (a link that leads nowhere)")
    if not os.access(path, os.R_OK):
        raise DatasetError(f"{path}: cannot be read: Permission denied")
    name = path.name.lower()
    if path.is_file() and not name.endswith(_SUPPORTED):
        raise DatasetError(
            f"{path} is of an unknown format; its name must end in {_SUPPORTED_TEXT}"
        )
    if name.endswith(PARQUET_SUFFIXES):
        return ParquetInput.open(path)
    # A pipe, as a shell's <(command) makes it, has no suffix: it is read as JSONL.
    check_compression(path)
    return JsonlFile(path=path, max_line_bytes=max_line_bytes)


def _schema_of(parts: tuple[InputPart, ...]) -> pa.Schema | None:
    files = [part for part in parts if isinstance(part, ParquetInput)]
    return common_schema(files) if len(files) == len(parts) else None


def _total(counts: Iterator[int | None]) -> int | None:
    total = 0
    for count in counts:
        if count is None:
            return None
        total += count
    return total
