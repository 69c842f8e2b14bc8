"""The output of a shard: an output like any other, with what it takes to join it to others.

It has one column more, which holds the input's columns as they were read, and its metadata tells
what is known of their types. From these it can be made a part again, and parts can be merged.
"""

from __future__ import annotations

import base64
import contextlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from furiosa_llm.dataset.declared import declared_types
from furiosa_llm.dataset.manifest import MANIFEST_KEY
from furiosa_llm.dataset.part_columns import CARRIED_JSON, typed_column
from furiosa_llm.dataset.parts import (
    CarriedColumn,
    PartInfo,
    carried_from_json,
    carried_to_json,
    write_tables,
)
from furiosa_llm.dataset.reading import reading
from furiosa_llm.dataset.schema import ANSWER_SCHEMA, AS_READ_COLUMN, output_names
from furiosa_llm.errors import DatasetError

_CARRIED_KEY = "furiosa_llm.carried"
_DECLARED_KEY = "furiosa_llm.declared"
_ROW_INDEX = "row_index"


@dataclass(frozen=True, slots=True, kw_only=True)
class ShardFile:
    """A file of a shard's output, of which only the footer was read.

    Attributes:
        path: Where it is.
        manifest: What the run was.
        num_rows: How many rows the file holds.
        carried: The input's columns in all files of the shard.
        declared: Their types, where the input declares them.
    """

    path: Path
    manifest: Mapping[str, Any]
    num_rows: int
    carried: dict[str, CarriedColumn]
    declared: pa.Schema | None


def shard_metadata(
    carried: Mapping[str, CarriedColumn], declared: pa.Schema | None
) -> dict[str, str]:
    """Returns what the output of a shard has to tell beside the manifest."""
    metadata = {_CARRIED_KEY: json.dumps(carried_to_json(carried))}
    if declared is not None:
        metadata[_DECLARED_KEY] = base64.b64encode(declared.serialize().to_pybytes()).decode()
    return metadata


def open_shard_file(path: Path) -> ShardFile:
    """Reads the footer of a file of a shard's output.

    Raises:
        DatasetError: It cannot be read, or is no output of a shard.
    """
    with _reading(path), pq.ParquetFile(path) as file:
        metadata = file.schema_arrow.metadata or {}
        if _CARRIED_KEY.encode() not in metadata:
            raise DatasetError(f"{path}: not the output of a run with --shard")
        declared = metadata.get(_DECLARED_KEY.encode())
        return ShardFile(
            path=path,
            manifest=json.loads(metadata[MANIFEST_KEY.encode()]),
            num_rows=file.metadata.num_rows,
            carried=carried_from_json(json.loads(metadata[_CARRIED_KEY.encode()])),
            declared=None
            if declared is None
            else pa.ipc.read_schema(pa.py_buffer(base64.b64decode(declared))),
        )


def as_part(file: ShardFile, path: Path, row_indexes: range) -> PartInfo:
    """Writes the rows of a file as a part.

    Args:
        file: What holds the rows.
        path: Where the part goes.
        row_indexes: The rows that it must hold, at least one.

    Raises:
        DatasetError: It cannot be read or holds other rows, or the part cannot be written.
    """
    with _reading(file.path):
        metadata = pq.read_metadata(file.path)
    groups = range(metadata.num_row_groups)
    info = PartInfo(
        path=path,
        num_rows=file.num_rows,
        num_bytes=sum(metadata.row_group(group).total_byte_size for group in groups),
        first_row=row_indexes[0],
        last_row=row_indexes[-1],
        carried=file.carried,
    )
    columns = _part_columns(file)
    schema = pa.schema([*ANSWER_SCHEMA, *(field for _, field in columns)])
    tables = _part_tables(file, schema, [name for name, _ in columns])
    write_tables(info, schema, _checked(tables, file.path, row_indexes))
    return info


def _checked(tables: Iterable[pa.Table], path: Path, row_indexes: range) -> Iterator[pa.Table]:
    start = 0
    for table in tables:
        stop = start + len(table)
        if not np.array_equal(table.column(_ROW_INDEX).to_numpy(), row_indexes[start:stop]):
            raise DatasetError(
                f"{path}: the rows from {row_indexes[start]} on are not all there once and in "
                "order; run the shard again"
            )
        start = stop
        yield table


def _part_columns(file: ShardFile) -> list[tuple[str, pa.Field]]:
    """Returns the columns that a part has for the input's, each with its name in the file."""
    names = output_names(file.carried)
    typed = [
        (names.get(name, ""), pa.field(typed_column(name), kind))
        for name, kind in declared_types(file.declared).items()
    ]
    return [*typed, (AS_READ_COLUMN, pa.field(CARRIED_JSON, pa.string()))]


def _part_tables(
    file: ShardFile, schema: pa.Schema, carried_names: Sequence[str]
) -> Iterator[pa.Table]:
    with _reading(file.path), pq.ParquetFile(file.path, pre_buffer=False) as source:
        for group in range(source.num_row_groups):
            table = source.read_row_group(group, use_threads=False)
            columns = [table.column(name) for name in ANSWER_SCHEMA.names]
            for name, field in zip(carried_names, schema.names[len(ANSWER_SCHEMA) :], strict=True):
                kind = schema.field(field).type
                columns.append(
                    table.column(name).cast(kind) if name else pa.nulls(len(table), kind)
                )
            yield pa.Table.from_arrays(columns, schema=schema)


def _reading(path: Path) -> contextlib.AbstractContextManager[None]:
    return reading(
        path, "the output of a shard", errors=(OSError, pa.ArrowException, KeyError, ValueError)
    )
