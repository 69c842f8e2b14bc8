"""How the merged rows of the parts become the columns of the output."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence, Set
from dataclasses import dataclass

import pyarrow as pa

from furiosa_llm.dataset.declared import declared_types, is_dictionary
from furiosa_llm.dataset.json_text import parse_json, to_json
from furiosa_llm.dataset.kinds import arrow_type
from furiosa_llm.dataset.part_columns import CARRIED_JSON, typed_column
from furiosa_llm.dataset.parts import CarriedColumn
from furiosa_llm.dataset.schema import (
    ANSWER_SCHEMA,
    AS_READ_COLUMN,
    OTHER_COLUMN,
    output_names,
)
from furiosa_llm.row_limits import MAX_COLUMNS

_Row = Mapping[str, object]


@dataclass(frozen=True, slots=True)
class _Column:
    """A carried column in the output, and how to build it from a table of a part's schema."""

    field: pa.Field
    build: Callable[[pa.Table, Sequence[_Row]], pa.Array]


class OutputLayout:
    """The columns of the output: those of every run, then the input's own.

    Rows that each bring columns of their own would make a column for each of them: what comes after
    the first thousand is kept in one, as JSON.

    The output of a shard has one more: the input's columns as they were read. Their types in the
    joined output are only known when the rows of all shards are.
    """

    def __init__(
        self,
        carried: Mapping[str, CarriedColumn],
        declared: pa.Schema | None,
        *,
        is_shard: bool = False,
    ) -> None:
        kept = declared_types(declared)
        names = output_names(carried)
        inferred = [name for name in carried if name not in kept]
        others = set(inferred[MAX_COLUMNS:])
        self._columns = [
            _typed(name, names[name], declared.field(name).type, kept[name])
            if declared is not None and name in kept
            else _inferred(name, names[name], column)
            for name, column in carried.items()
            if name not in others
        ]
        if others:
            self._columns.append(_together(others))
        if is_shard:
            as_read = pa.field(AS_READ_COLUMN, pa.string())
            self._columns.append(_Column(as_read, lambda merged, _: merged.column(CARRIED_JSON)))
        self.schema = pa.schema([*ANSWER_SCHEMA, *(column.field for column in self._columns)])

    def table(self, merged: pa.Table) -> pa.Table:
        """Builds the output's rows from merged rows."""
        texts = merged.column(CARRIED_JSON).to_pylist()
        rows = [_parsed(text) for text in texts] if any(texts) else [{}] * len(texts)
        arrays = [merged.column(name) for name in ANSWER_SCHEMA.names]
        arrays += [column.build(merged, rows) for column in self._columns]
        return pa.Table.from_arrays(arrays, schema=self.schema)


def _parsed(text: str | None) -> _Row:
    if text is None:
        return {}
    row = parse_json(text.encode())
    assert isinstance(row, dict), f"carried columns are not an object: {text[:80]}"
    return row


def _typed(name: str, output_name: str, wanted: pa.DataType, kept: pa.DataType) -> _Column:
    source = typed_column(name)
    if not is_dictionary(wanted):
        return _Column(pa.field(output_name, kept), lambda merged, _: merged.column(source))
    return _Column(
        pa.field(output_name, pa.dictionary(pa.int32(), kept)),
        lambda merged, _: merged.column(source).dictionary_encode(),
    )


def _inferred(name: str, output_name: str, column: CarriedColumn) -> _Column:
    kind = arrow_type(column.kind)
    if kind is None:
        return _Column(
            pa.field(output_name, pa.string()),
            lambda _, rows: pa.array([_as_text(row.get(name)) for row in rows], type=pa.string()),
        )
    return _Column(
        pa.field(output_name, kind),
        lambda _, rows: pa.array([row.get(name) for row in rows], type=kind),
    )


def _together(names: Set[str]) -> _Column:
    def text_of(row: _Row) -> str | None:
        own = {name: value for name, value in row.items() if name in names}
        return to_json(own) if own else None

    return _Column(
        pa.field(OTHER_COLUMN, pa.string()),
        lambda _, rows: pa.array(map(text_of, rows), type=pa.string()),
    )


def _as_text(value: object) -> str | None:
    return value if value is None or isinstance(value, str) else to_json(value)
