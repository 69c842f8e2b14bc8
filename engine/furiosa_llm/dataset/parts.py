"""Closed files of finished rows, which a run leaves behind one after the other.

A part has the columns of the output, in order of `row_index`. Of the input's own columns it has
those whose type the input declares as `carried.NAME`, and all others as one JSON object in
`carried`: their types are only known when all rows are. All parts of a run have the same schema.
"""

from __future__ import annotations

import json
from array import array
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from operator import attrgetter
from pathlib import Path
from typing import TypeAlias

import pyarrow as pa
import pyarrow.parquet as pq

from furiosa_llm.dataset.answer import AnswerRow
from furiosa_llm.dataset.durable import durable_file
from furiosa_llm.dataset.json_text import to_json
from furiosa_llm.dataset.kinds import NULL, Kind, join, kind_of_all
from furiosa_llm.dataset.packed_logprobs import LOGPROBS_TYPE, logprobs_column
from furiosa_llm.dataset.schema import ANSWER_SCHEMA, COMPLETION_TYPE
from furiosa_llm.outputs import CompletionOutput, PositionLogprobs

CARRIED_JSON = "carried"

DeclaredTypes: TypeAlias = Mapping[str, pa.DataType]

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


def typed_column(name: str) -> str:
    """Names the column of a part that holds a carried column of declared type."""
    return f"{CARRIED_JSON}.{name}"


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
    table = _table(ordered, declared)
    info = PartInfo(
        path=path,
        num_rows=len(ordered),
        num_bytes=table.nbytes,
        first_row=ordered[0].row_index,
        last_row=ordered[-1].row_index,
        carried=_carried_columns(ordered, declared),
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
            file, schema, compression="zstd", use_dictionary=False, write_statistics=False
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
    rows: Sequence[AnswerRow], declared: DeclaredTypes
) -> dict[str, CarriedColumn]:
    first: dict[str, tuple[int, int]] = {}
    values: dict[str, list[object]] = {}
    for row in rows:
        for position, (name, value) in enumerate(row.carried.items()):
            if name not in first:
                first[name] = (row.row_index, position)
                values[name] = []
            values[name].append(value)
    return {
        name: CarriedColumn(place, NULL if name in declared else kind_of_all(values[name]))
        for name, place in first.items()
    }


def _table(rows: Sequence[AnswerRow], declared: DeclaredTypes) -> pa.Table:
    arrays = [_answer_column(rows, field) for field in ANSWER_SCHEMA]
    fields = list(ANSWER_SCHEMA)
    for name, kind in declared.items():
        arrays.append(pa.array([row.carried.get(name) for row in rows], type=kind))
        fields.append(pa.field(typed_column(name), kind))
    arrays.append(pa.array([_carried_json(row, declared) for row in rows], type=pa.string()))
    fields.append(pa.field(CARRIED_JSON, pa.string()))
    return pa.Table.from_arrays(arrays, schema=pa.schema(fields))


def _answer_column(rows: Sequence[AnswerRow], field: pa.Field) -> pa.Array:
    if field.name == "token_ids":
        return _token_lists([row.token_ids for row in rows])
    if field.type == LOGPROBS_TYPE:
        return logprobs_column(list(map(attrgetter(field.name), rows)))
    if field.name == "completions":
        values = [_completions(row.completions) for row in rows]
        return pa.array(values, type=pa.list_(COMPLETION_TYPE))
    return pa.array(list(map(attrgetter(field.name), rows)), type=field.type)


def _token_lists(lists: Sequence[array[int]]) -> pa.Array:
    """Puts all tokens end to end: no Python number is made for any of them."""
    tokens = array("i")
    for one in lists:
        tokens.extend(one)
    offsets = array("i", accumulate(map(len, lists), initial=0))
    return pa.ListArray.from_arrays(_int32(offsets), _int32(tokens))


def _int32(values: array[int]) -> pa.Array:
    return pa.Array.from_buffers(pa.int32(), len(values), [None, pa.py_buffer(values)])


def _completions(completions: Sequence[CompletionOutput] | None) -> list[dict[str, object]] | None:
    if completions is None:
        return None
    return [
        {
            "index": one.index,
            "text": one.text,
            "token_ids": one.token_ids,
            "finish_reason": one.finish_reason,
            "stop_reason": None if one.stop_reason is None else str(one.stop_reason),
            "cumulative_logprob": one.cumulative_logprob,
            "logprobs": _logprobs(one.logprobs),
        }
        for one in completions
    ]


def _logprobs(positions: Sequence[PositionLogprobs] | None) -> list[list[object]] | None:
    if positions is None:
        return None
    return [
        [
            {
                "token_id": token_id,
                "token": entry.decoded_token,
                "logprob": entry.logprob,
                "rank": entry.rank,
            }
            for token_id, entry in position.items()
        ]
        for position in positions
    ]


def _carried_json(row: AnswerRow, declared: DeclaredTypes) -> str | None:
    if not declared:
        return to_json(row.carried) if row.carried else None
    other = {name: value for name, value in row.carried.items() if name not in declared}
    return to_json(other) if other else None
