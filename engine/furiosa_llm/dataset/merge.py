"""Puts the rows of all parts in order, holding only a little of each part at a time."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from furiosa_llm.dataset.parts import PartInfo, joined_columns, write_tables
from furiosa_llm.dataset.shard import WHOLE, Shard
from furiosa_llm.errors import DatasetError

MAX_OPEN_PARTS = 64

_MAX_SMALL_BYTES = 16 << 20
_ROW_INDEX = "row_index"


def merged_tables(
    infos: Sequence[PartInfo],
    scratch: Path,
    *,
    shard: Shard | None = WHOLE,
    max_open: int = MAX_OPEN_PARTS,
) -> Iterator[pa.Table]:
    """Yields small tables that together hold every row in order, once.

    Args:
        infos: The parts. Their rows may overlap in any way.
        scratch: A folder for parts in between, which are needed if very many parts overlap.
        shard: The rows that must all be there; None where some may be missing.
        max_open: Most parts to read from at the same time.

    Raises:
        DatasetError: A part cannot be read, or one in between cannot be written.
    """
    num_rows, last = 0, -1
    for table in _ordered_tables(_with_little_overlap(infos, scratch, max_open)):
        indexes = table.column(_ROW_INDEX).to_numpy()
        if shard is None:
            assert last < indexes[0], f"row {indexes[0]} comes after row {last}"
            assert np.all(np.diff(indexes) > 0), f"a row from {indexes[0]} on is there twice"
        else:
            expected = shard.row_indexes(num_rows, num_rows + len(indexes))
            assert np.array_equal(indexes, expected), (
                f"rows {expected.start} to {expected[-1]} are not all there once"
            )
        num_rows, last = num_rows + len(indexes), indexes[-1]
        yield table


class _Cursor:
    """Reads one part, a row group at a time."""

    def __init__(self, info: PartInfo) -> None:
        self._path = info.path
        with _reading(info.path):
            self._file = _opened(info.path)
        self._next_group = 0
        self.load_next()

    def load_next(self) -> bool:
        """Loads the next row group; if there is none, closes the file and says no."""
        if self._next_group == self._file.num_row_groups:
            self._file.close()
            return False
        with _reading(self._path):
            self._table = self._file.read_row_group(self._next_group, use_threads=False)
        self._next_group += 1
        self._indexes = self._table.column(_ROW_INDEX).to_numpy()
        return True

    @property
    def is_empty(self) -> bool:
        """Whether nothing of the loaded row group is left."""
        return len(self._indexes) == 0

    @property
    def last_loaded(self) -> int:
        """The last row index of the loaded row group."""
        return int(self._indexes[-1])

    def take_through(self, last: int) -> pa.Table:
        """Takes the loaded rows with an index of at most `last`."""
        count = int(np.searchsorted(self._indexes, last, side="right"))
        taken = self._table.slice(0, count)
        self._table = self._table.slice(count)
        self._indexes = self._indexes[count:]
        return taken


def _ordered_tables(infos: Sequence[PartInfo]) -> Iterator[pa.Table]:
    """Merges parts, each of which is in order. A part is opened when its first row is due."""
    waiting = sorted(infos, key=lambda info: info.first_row, reverse=True)
    cursors: list[_Cursor] = []
    while waiting or cursors:
        if not cursors:
            cursors.append(_Cursor(waiting.pop()))
        # Up to here every row is loaded: what comes later in a part has a higher index.
        bound = min(cursor.last_loaded for cursor in cursors)
        while waiting and waiting[-1].first_row <= bound:
            cursors.append(_Cursor(waiting.pop()))
            bound = min(bound, cursors[-1].last_loaded)
        taken = [table for cursor in cursors if len(table := cursor.take_through(bound))]
        yield _in_order(taken)
        cursors = [cursor for cursor in cursors if not cursor.is_empty or cursor.load_next()]


def _in_order(tables: Sequence[pa.Table]) -> pa.Table:
    if len(tables) == 1:
        return tables[0]
    joined = pa.concat_tables(tables)
    order = np.argsort(joined.column(_ROW_INDEX).to_numpy(), kind="stable")
    return joined.take(pa.array(order))


def _with_little_overlap(
    infos: Sequence[PartInfo], scratch: Path, max_open: int
) -> Sequence[PartInfo]:
    """Merges parts into bigger ones until no more than `max_open` overlap."""
    for level in itertools.count():
        if _overlap(infos) <= max_open:
            return infos
        ordered = sorted(infos, key=lambda info: info.first_row)
        infos = [
            _merged_part(group, scratch / f"merge-{level}-{number:06d}.parquet")
            for number, group in enumerate(_groups(ordered, max_open))
        ]
    raise AssertionError("unreachable: each level has fewer parts than the one before")


def _groups(infos: Sequence[PartInfo], max_open: int) -> Iterator[Sequence[PartInfo]]:
    """Deals parts out: as many as may be open, or more where all of them are small."""
    group: list[PartInfo] = []
    num_bytes = 0
    for info in infos:
        num_bytes += info.num_bytes
        if len(group) >= max_open and num_bytes > _MAX_SMALL_BYTES:
            yield group
            group, num_bytes = [], info.num_bytes
        group.append(info)
    yield group


def _is_small(infos: Sequence[PartInfo]) -> bool:
    return sum(info.num_bytes for info in infos) <= _MAX_SMALL_BYTES


def _overlap(infos: Sequence[PartInfo]) -> int:
    """The most parts whose ranges of row indexes have a row in common."""
    starts = [(info.first_row, 1) for info in infos]
    ends = [(info.last_row + 1, -1) for info in infos]
    return max(itertools.accumulate(change for _, change in sorted(starts + ends)), default=0)


def _merged_part(group: Sequence[PartInfo], path: Path) -> PartInfo:
    info = PartInfo(
        path=path,
        num_rows=sum(part.num_rows for part in group),
        num_bytes=sum(part.num_bytes for part in group),
        first_row=min(part.first_row for part in group),
        last_row=max(part.last_row for part in group),
        carried=joined_columns(group),
    )
    with _reading(group[0].path):
        schema = pq.read_schema(group[0].path)
    # Small parts are read whole and put in order at once, one file open at a time.
    tables = [_in_order([_whole(part) for part in group])] if _is_small(group) else None
    write_tables(info, schema, tables or _ordered_tables(group))
    return info


def _whole(info: PartInfo) -> pa.Table:
    with _reading(info.path), _opened(info.path) as file:
        return file.read(use_threads=False)


def _opened(path: Path) -> pq.ParquetFile:
    return pq.ParquetFile(path, pre_buffer=False, page_checksum_verification=True)


@contextlib.contextmanager
def _reading(path: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, pa.ArrowException) as error:
        raise DatasetError(f"{path}: a part of the output cannot be read: {error}") from error
