"""Writes the account of every engine step to Parquet while the run goes on."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from furiosa_llm.dataset.durable import closed_well, durable_file, writing
from furiosa_llm.outputs import StepStats

_ROWS_PER_GROUP = 8192

_TYPES = {"replica": pa.int16(), "step": pa.int64()}


def _type_of(name: str) -> pa.DataType:
    is_count = name.startswith("num_")
    return _TYPES.get(name, pa.int32() if is_count else pa.float64())


STEP_STATS_SCHEMA = pa.schema(
    [
        pa.field(field.name, _type_of(field.name), nullable=False)
        for field in dataclasses.fields(StepStats)
    ]
)


class StepStatsWriter:
    """Writes steps, several at a time."""

    def __init__(self, path: Path, writer: pq.ParquetWriter, *, rows_per_group: int) -> None:
        self._path = path
        self._writer = writer
        self._rows_per_group = rows_per_group
        self._waiting: list[StepStats] = []

    @classmethod
    @contextlib.contextmanager
    def open(
        cls, path: Path, *, rows_per_group: int = _ROWS_PER_GROUP
    ) -> Iterator[StepStatsWriter]:
        """Opens a file that appears under its name when the block ends, however it ends.

        Raises:
            DatasetError: It cannot be written.
        """
        with contextlib.ExitStack() as stack:
            file = stack.enter_context(durable_file(path))
            parquet = stack.enter_context(
                pq.ParquetWriter(file, STEP_STATS_SCHEMA, compression="zstd")
            )
            steps = cls(path, parquet, rows_per_group=rows_per_group)
            stack.callback(steps._flush)
            with closed_well(stack.pop_all()):
                yield steps

    def write(self, stats: StepStats) -> None:
        """Adds one step.

        Raises:
            DatasetError: It cannot be written.
        """
        self._waiting.append(stats)
        if len(self._waiting) >= self._rows_per_group:
            self._flush()

    def _flush(self) -> None:
        if not self._waiting:
            return
        columns = [
            pa.array([getattr(stats, field.name) for stats in self._waiting], type=field.type)
            for field in STEP_STATS_SCHEMA
        ]
        with writing(self._path):
            self._writer.write_table(pa.Table.from_arrays(columns, schema=STEP_STATS_SCHEMA))
        self._waiting = []
