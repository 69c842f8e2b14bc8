"""Parquet rows as Python values, a few at a time."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from furiosa_llm.dataset.arrow_values import python_value
from furiosa_llm.dataset.reading import reading
from furiosa_llm.dataset.record import RawRow
from furiosa_llm.errors import DatasetError

PARQUET_SUFFIXES = (".parquet", ".pq")

_ROWS_AT_ONCE = 256
# Pages are read through a buffer of this size, where pyarrow would load whole column chunks.
_BUFFER_BYTES = 1 << 18


@dataclass(frozen=True, slots=True, kw_only=True)
class ParquetInput:
    """A Parquet file whose footer was read."""

    path: Path
    num_rows: int
    schema: pa.Schema

    @classmethod
    def open(cls, path: Path) -> ParquetInput:
        """Reads the footer.

        Raises:
            DatasetError: It is no Parquet file, cannot be read, or has two columns of one name.
        """
        with _reading(path), pq.ParquetFile(path) as file:
            num_rows, schema = file.metadata.num_rows, file.schema_arrow
        _check_names(path, schema)
        return cls(path=path, num_rows=num_rows, schema=schema)

    def count_rows(self) -> int | None:
        """Returns the number of rows, which the footer tells."""
        return self.num_rows

    def is_within(self, name: str, low: int, high: int) -> bool:
        """Whether the footer says that all numbers of a column are in [low, high].

        Raises:
            DatasetError: The file cannot be read.
        """
        with _reading(self.path):
            metadata = pq.read_metadata(self.path)
        for number in range(metadata.num_row_groups):
            group = metadata.row_group(number)
            columns = map(group.column, range(group.num_columns))
            found = [column for column in columns if column.path_in_schema == name]
            if len(found) != 1 or not _is_within(found[0].statistics, low, high):
                return False
        return True

    def rows(self, first_row_index: int) -> Iterator[RawRow]:
        """Yields the rows.

        Raises:
            DatasetError: The file is damaged.
        """
        row_index = first_row_index
        with _reading(self.path), _opened(self.path) as file:
            names = file.schema_arrow.names
            for batch in file.iter_batches(batch_size=_ROWS_AT_ONCE, use_threads=False):
                columns = [_values(column) for column in batch.columns]
                num_bytes = batch.nbytes // max(batch.num_rows, 1)  # of each row, on average
                for values in zip(*columns, strict=True) if columns else [()] * batch.num_rows:
                    data = dict(zip(names, values, strict=True))
                    problem = self._problem(data, row_index - first_row_index)
                    yield RawRow(row_index, None if problem else data, problem, num_bytes)
                    row_index += 1

    def _problem(self, data: Mapping[str, object], number: int) -> str | None:
        if _NotText not in map(type, data.values()):
            return None
        name = next(name for name, value in data.items() if type(value) is _NotText)
        return f"{self.path}: row {number}: column {name!r} is not valid UTF-8"


def _is_within(statistics: pq.Statistics | None, low: int, high: int) -> bool:
    if statistics is None:
        return False
    if statistics.num_values == 0:  # without those that are null
        return True
    bounds = (statistics.min_raw, statistics.max_raw) if statistics.has_min_max else (None,)
    return all(isinstance(bound, int) and low <= bound <= high for bound in bounds)


def _check_names(path: Path, fields: Iterable[pa.Field]) -> None:
    names: set[str] = set()
    for field in fields:
        if field.name in names:
            raise DatasetError(f"{path}: two columns are named {field.name!r}; rename one of them")
        names.add(field.name)
        if pa.types.is_struct(field.type):
            _check_names(path, field.type)
        elif pa.types.is_nested(field.type):
            _check_names(path, map(field.type.field, range(field.type.num_fields)))


class _NotText:
    """Stands for a value that the file calls text but that is not UTF-8."""


def _values(column: pa.Array) -> list[object]:
    try:
        values: list[object] = column.to_pylist()
    except (ValueError, OverflowError):
        # No text, or nanoseconds and years that Python's own types lack and that stay Arrow's.
        return [_value_or_mark(scalar) for scalar in column]
    return values


def _value_or_mark(scalar: pa.Scalar) -> object:
    try:
        return python_value(scalar)
    except UnicodeDecodeError:
        return _NotText()


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[pq.ParquetFile]:
    with pq.ParquetFile(path, buffer_size=_BUFFER_BYTES, pre_buffer=False) as file:
        yield file


def _reading(path: Path) -> contextlib.AbstractContextManager[None]:
    return reading(path, "Parquet")
