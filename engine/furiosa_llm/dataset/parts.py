"""Closed files of finished rows, which a run leaves behind one after the other.

A part has its rows in order of `row_index`. All parts of a run have the same schema.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from furiosa_llm.dataset.answer import AnswerRow
from furiosa_llm.dataset.durable import durable_file
from furiosa_llm.dataset.kinds import NULL, Kind, join, kind_of_all
from furiosa_llm.dataset.part_columns import (
    Carried,
    DeclaredTypes,
    answer_arrays,
    carried_arrays,
    part_schema,
)

_INFO_KEY = b"furiosa_llm.part"
_MAX_GROUP_ROWS = 1024
_MAX_GROUP_BYTES = 2 << 20


@dataclass(frozen=True, slots=True)
class CarriedColumn:
    """One of the input's own columns.

    Attributes:
        first: Row index and position in that row of its first value, which order the columns.
        kind: What its values have in common; not asked for where the input declares a type.
    """

    first: tuple[int, int]
    kind: Kind

    def joined(self, other: CarriedColumn) -> CarriedColumn:
        """Describes the values of both."""
        return CarriedColumn(min(self.first, other.first), join(self.kind, other.kind))


@dataclass(frozen=True, slots=True, kw_only=True)
class PartInfo:
    """What there is to know of a part without reading its rows."""

    path: Path
    num_rows: int
    num_bytes: int
    first_row: int
    last_row: int
    carried: dict[str, CarriedColumn]


def joined_columns(infos: Iterable[PartInfo]) -> dict[str, CarriedColumn]:
    """Describes the carried columns of many parts, in the order of their first values."""
    columns: dict[str, CarriedColumn] = {}
    for info in infos:
        for name, column in info.carried.items():
            known = columns.get(name)
            columns[name] = column if known is None else known.joined(column)
    return dict(sorted(columns.items(), key=lambda item: item[1].first))


def write_part(path: Path, rows: Sequence[AnswerRow], declared: DeclaredTypes) -> PartInfo:
    """Writes rows in order of their index and makes them durable.

    Args:
        path: Where to; nothing is there before the part is complete.
        rows: At least one, in any order.
        declared: The types of the input's own columns as far as they are known.

    Raises:
        DatasetError: It cannot be written.
    """
    ordered = sorted(rows, key=lambda row: row.row_index)
    carried = [row.carried for row in ordered]
    return _write_columns(path, answer_arrays(ordered), carried, declared)


def write_answer_part(
    path: Path, answers: pa.Table, carried: Sequence[Carried], declared: DeclaredTypes
) -> PartInfo:
    """Writes rows whose own columns are there already; `carried` has what each row carries.

    Args:
        path: As for `write_part`.
        answers: The columns of `ANSWER_SCHEMA`, in order of their index.
        carried: The input's columns of each of them.
        declared: As for `write_part`.

    Raises:
        DatasetError: It cannot be written.
    """
    return _write_columns(path, answers.columns, carried, declared)


def _write_columns(
    path: Path,
    answers: Sequence[pa.Array],
    carried: Sequence[Carried],
    declared: DeclaredTypes,
) -> PartInfo:
    columns = [*answers, *carried_arrays(carried, declared)]
    table = pa.Table.from_arrays(columns, schema=part_schema(declared))
    indexes = table.column("row_index")
    info = PartInfo(
        path=path,
        num_rows=len(table),
        num_bytes=table.nbytes,
        first_row=indexes[0].as_py(),
        last_row=indexes[-1].as_py(),
        carried=_carried_columns(indexes.to_pylist(), carried, declared),
    )
    write_tables(info, table.schema, [table])
    return info


def write_tables(info: PartInfo, schema: pa.Schema, tables: Iterable[pa.Table]) -> None:
    """Writes a part from tables that are in order.

    Raises:
        DatasetError: It cannot be written.
    """
    about = {
        "num_rows": info.num_rows,
        "num_bytes": info.num_bytes,
        "first_row": info.first_row,
        "last_row": info.last_row,
        "carried": carried_to_json(info.carried),
    }
    schema = schema.with_metadata({_INFO_KEY: json.dumps(about).encode()})
    group_rows = _group_rows(info)
    with (
        durable_file(info.path) as file,
        # Read once, front to back: dictionaries and statistics would not pay.
        pq.ParquetWriter(
            file,
            schema,
            compression="zstd",
            use_dictionary=False,
            write_statistics=False,
            write_page_checksum=True,
        ) as writer,
    ):
        for table in tables:
            writer.write_table(table, row_group_size=group_rows)


def read_part_info(path: Path) -> PartInfo:
    """Reads what a part says about itself."""
    about = json.loads(pq.read_schema(path).metadata[_INFO_KEY])
    return PartInfo(path=path, carried=carried_from_json(about.pop("carried")), **about)


def carried_to_json(carried: Mapping[str, CarriedColumn]) -> dict[str, list[object]]:
    """Returns the description of carried columns as JSON can hold it."""
    return {name: [*column.first, column.kind] for name, column in carried.items()}


def carried_from_json(value: Mapping[str, tuple[int, int, Kind]]) -> dict[str, CarriedColumn]:
    """Reads what `carried_to_json` gives."""
    return {
        name: CarriedColumn((row, position), kind) for name, (row, position, kind) in value.items()
    }


def _group_rows(info: PartInfo) -> int:
    """Rows of a group, so that a merge of many parts holds little of each."""
    by_size = _MAX_GROUP_BYTES * info.num_rows // max(info.num_bytes, 1)
    return max(1, min(_MAX_GROUP_ROWS, by_size))


def _carried_columns(
    indexes: Sequence[int], carried: Sequence[Carried], declared: DeclaredTypes
) -> dict[str, CarriedColumn]:
    first: dict[str, tuple[int, int]] = {}
    values: dict[str, list[object]] = {}
    for row_index, columns in zip(indexes, carried, strict=True):
        for position, (name, value) in enumerate(columns.items()):
            if name not in first:
                first[name] = (row_index, position)
                values[name] = []
            values[name].append(value)
    return {
        name: CarriedColumn(place, NULL if name in declared else kind_of_all(values[name]))
        for name, place in first.items()
    }
