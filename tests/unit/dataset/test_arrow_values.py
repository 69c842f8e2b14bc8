from __future__ import annotations

import datetime
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from furiosa_llm.dataset.arrow_values import python_value, scalar_text, value_text
from furiosa_llm.dataset.failed_rows import FailedRowsWriter
from furiosa_llm.dataset.json_text import to_json
from furiosa_llm.dataset.prompts import shortened
from furiosa_llm.dataset.reader import open_input
from tests.unit.dataset.dataset_factories import carried_table

LONG_AGO = pa.scalar(2**60, pa.timestamp("us", tz="UTC"))


@pytest.mark.parametrize(
    ("scalar", "text"),
    [
        (pa.scalar(1, pa.timestamp("ns")), "1970-01-01T00:00:00.000000001"),
        (LONG_AGO, "-27032-08-17T21:30:06.846976Z"),
        (pa.scalar(1, pa.time64("ns")), "00:00:00.000000001"),
        (pa.scalar(2**31 - 1, pa.date32()), "2147483647 (date32[day])"),
        (pa.scalar(2**62, pa.duration("s")), f"{2**62} (duration[s])"),
        (pa.scalar(7, pa.timestamp("ns", tz="No/Where")), "7 (timestamp[ns, tz=No/Where])"),
    ],
)
def test_any_value_of_arrow_becomes_text(scalar: pa.Scalar, text: str) -> None:
    assert scalar_text(scalar) == text
    assert to_json({"a": [scalar]}) == f'{{"a":["{text}"]}}'
    assert len(shortened(scalar)) < 120


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (LONG_AGO, "-27032-08-17T21:30:06.846976Z"),
        ([LONG_AGO, 1], "['-27032-08-17T21:30:06.846976Z', 1]"),
        ({"a": [("k", LONG_AGO)]}, "{'a': [('k', '-27032-08-17T21:30:06.846976Z')]}"),
        (datetime.datetime(2026, 1, 2, 3), "2026-01-02 03:00:00"),
        (71, "71"),
    ],
)
def test_any_value_of_a_column_becomes_text(value: object, text: str) -> None:
    assert value_text(value) == text


def test_only_what_python_lacks_stays_a_value_of_arrow() -> None:
    when = LONG_AGO.type
    fields: list[tuple[str, pa.DataType]] = [
        ("half", pa.float16()),
        ("whens", pa.list_(when)),
        ("map", pa.map_(pa.string(), when)),
        ("none", when),
    ]
    value = {"half": 1.5, "whens": [LONG_AGO, None], "map": [("k", LONG_AGO)], "none": None}
    struct = pa.array([value], type=pa.struct(fields))

    found = python_value(struct[0])

    assert found == value
    assert pa.array([found], type=struct.type).equals(struct)


def test_a_row_with_such_a_value_is_carried_and_written_where_it_fails(tmp_path: Path) -> None:
    whens = pa.array([LONG_AGO, None])
    structs = pa.StructArray.from_arrays([pa.array(["a", "b"]), whens], ["h", "t"])
    pq.write_table(pa.table({"s": structs}), tmp_path / "1.parquet")
    rows = [row for row in open_input(str(tmp_path)).rows() if row.data is not None]

    with FailedRowsWriter.open(tmp_path / "failed.jsonl") as writer:
        writer.write(rows[0])
    table = carried_table(tmp_path / "out", [row.data or {} for row in rows])

    text = "-27032-08-17T21:30:06.846976Z"
    assert (tmp_path / "failed.jsonl").read_text() == f'{{"s":{{"h":"a","t":"{text}"}}}}\n'
    assert table.to_pylist() == [{"s": {"h": "a", "t": text}}, {"s": {"h": "b", "t": None}}]
