from __future__ import annotations

import datetime
import math
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from furiosa_llm.dataset.reader import open_input
from tests.unit.dataset.dataset_factories import carried_table

LATE = datetime.datetime(2300, 1, 1)  # no timestamp[ns] holds it
SOON = datetime.datetime(2026, 1, 1)
NS, US = pa.timestamp("ns"), pa.timestamp("us")
WORDS = pa.dictionary(pa.int8(), pa.string())


def through_files(folder: Path, *arrays: pa.Array) -> pa.Array:
    """Writes a file of each array, and returns what a run carries of all."""
    for number, array in enumerate(arrays):
        pq.write_table(pa.table({"v": array}), folder / f"{number}.parquet")
    source = open_input(str(folder))
    rows = [row.data or {} for row in source.rows()]
    return carried_table(folder / "out", rows, carried_schema=source.schema).column("v")


@pytest.mark.parametrize(
    ("first", "second", "common"),
    [
        (pa.array([1, None]), pa.array([math.inf, 2.5]), pa.float64()),
        (pa.array([2**53], pa.uint64()), pa.array([-math.inf], pa.float32()), pa.float64()),
        (pa.nulls(1, pa.int64()), pa.array([0.5]), pa.float64()),
        (pa.array([1.5], pa.float16()), pa.array([2.5], pa.float32()), pa.float32()),
        (pa.array([1], pa.int8()), pa.array([2**40]), pa.int64()),
        (pa.array([-1], pa.int8()), pa.array([255], pa.uint8()), pa.int16()),
        (pa.array(["a"]), pa.array(["b"], pa.large_string()), pa.large_string()),
        (pa.array(["a"], WORDS), pa.array(["b"]), pa.string()),
        (pa.array([b"a"]), pa.array([b"b"], pa.large_binary()), pa.large_binary()),
        (pa.array([1, None], NS), pa.array([SOON], US), NS),
        (pa.array([1], pa.timestamp("s")), pa.array([1], NS), NS),
    ],
)
def test_types_that_fit_into_one_are_kept(
    tmp_path: Path, first: pa.Array, second: pa.Array, common: pa.DataType
) -> None:
    found = through_files(tmp_path, first, second)

    expected = pa.chunked_array([first.cast(common), second.cast(common)])
    assert found.combine_chunks().equals(expected.combine_chunks())


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ([2**53 + 1], pa.array([0.5])),
        ([2**63], pa.array([-1])),
        ([2**64 - 1], pa.array([0.5])),
    ],
)
def test_numbers_that_would_change_are_written_as_text(
    tmp_path: Path, first: list[int], second: pa.Array
) -> None:
    wide = pa.array(first, pa.uint64() if first[0] >= 2**63 else pa.int64())

    found = through_files(tmp_path, wide, second)

    assert found.to_pylist() == [str(first[0]), str(second[0])]


def test_times_beyond_nanoseconds_are_written_as_text(tmp_path: Path) -> None:
    found = through_files(tmp_path, pa.array([1000], NS), pa.array([LATE], US))

    assert found.to_pylist() == ["1970-01-01T00:00:00.000001", "2300-01-01T00:00:00"]


@pytest.mark.parametrize("zone", ["UTC", "No/Where"])
def test_times_of_a_zone_are_kept_or_written_as_text(tmp_path: Path, zone: str) -> None:
    kinds = [pa.timestamp(unit, tz=zone) for unit in ("us", "ns")]

    found = through_files(tmp_path, *(pa.array([1000], kind) for kind in kinds))

    assert found.type == (kinds[1] if zone == "UTC" else pa.string())


def test_numbers_of_two_bytes_keep_their_type_and_what_is_no_number(tmp_path: Path) -> None:
    values = pa.array([1.5, None, math.nan, -math.inf], pa.float16())

    found = through_files(tmp_path, values).combine_chunks()

    assert found.type == pa.float16()
    assert str(found) == str(values)


def test_without_statistics_nothing_is_promised(tmp_path: Path) -> None:
    path = tmp_path / "0.parquet"
    pq.write_table(pa.table({"v": [1]}), path, write_statistics=False)
    pq.write_table(pa.table({"v": [0.5]}), tmp_path / "1.parquet")

    assert open_input(str(tmp_path)).schema == pa.schema([])
