from __future__ import annotations

import datetime
import decimal
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from furiosa_llm.dataset.reader import open_input
from furiosa_llm.errors import DatasetError


def test_values_come_as_python_values_and_nulls_as_none(tmp_path: Path) -> None:
    path = tmp_path / "p.parquet"
    table = pa.table(
        {
            "prompt": ["a", None],
            "messages": [None, [{"role": "user", "content": "Hi"}]],
            "when": pa.array([datetime.date(2026, 1, 2), None]),
            "price": pa.array([decimal.Decimal("1.50"), None]),
        }
    )
    pq.write_table(table, path)

    source = open_input(str(path))

    assert [row.data for row in source.rows()] == table.to_pylist()
    assert (source.num_rows, source.count_rows()) == (2, 2)
    assert source.schema is not None
    assert source.schema.equals(table.schema)


def test_rows_of_many_groups_are_numbered_through(tmp_path: Path) -> None:
    path = tmp_path / "p.parquet"
    pq.write_table(pa.table({"prompt": [str(i) for i in range(1000)]}), path, row_group_size=300)

    rows = list(open_input(str(path)).rows())

    assert [(row.row_index, row.data) for row in rows] == [
        (i, {"prompt": str(i)}) for i in range(1000)
    ]


def test_text_that_is_not_utf8_is_an_error_of_its_row(tmp_path: Path) -> None:
    path = tmp_path / "p.parquet"
    text = pa.array([b"a", b"\xff", None]).view(pa.string())
    pq.write_table(pa.table({"id": [1, 2, 3], "prompt": text}), path)

    rows = list(open_input(str(path)).rows())

    assert [row.data for row in rows] == [{"id": 1, "prompt": "a"}, None, {"id": 3, "prompt": None}]
    assert rows[1].error == f"{path}: row 1: column 'prompt' is not valid UTF-8"


def test_a_row_of_a_later_file_is_named_by_its_place_there(tmp_path: Path) -> None:
    for name in "ab":
        text = pa.array([b"a", b"\xff" if name == "b" else b"c"]).view(pa.string())
        pq.write_table(pa.table({"prompt": text}), tmp_path / f"{name}.parquet")

    rows = list(open_input(str(tmp_path)).rows())

    assert [row.row_index for row in rows] == [0, 1, 2, 3]
    assert rows[3].error == f"{tmp_path}/b.parquet: row 1: column 'prompt' is not valid UTF-8"


def test_times_that_python_cannot_hold_are_kept_as_arrow_values(tmp_path: Path) -> None:
    path = tmp_path / "p.parquet"
    years = pa.array([2**60, None], type=pa.timestamp("us"))
    pq.write_table(pa.table({"when": years}), path)

    values = [row.data and row.data["when"] for row in open_input(str(path)).rows()]

    assert pa.array(values, type=years.type).equals(years)


@pytest.mark.parametrize("place", ["column", "struct", "list", "map"])
def test_two_columns_of_one_name_are_refused(tmp_path: Path, place: str) -> None:
    one = pa.array([1])
    twice = pa.StructArray.from_arrays([one, one], ["x", "x"])
    array = {
        "struct": twice,
        "list": pa.ListArray.from_arrays([0, 1], twice),
        "map": pa.MapArray.from_arrays([0, 1], one, twice),
    }.get(place, one)
    names = ["x", "x"] if place == "column" else ["x", "y"]
    pq.write_table(pa.Table.from_arrays([one, array], names), tmp_path / "p.parquet")

    with pytest.raises(DatasetError, match=r"p\.parquet: two columns are named 'x'; rename one"):
        open_input(str(tmp_path))


def test_a_file_damaged_in_the_middle_ends_the_run(tmp_path: Path) -> None:
    path = tmp_path / "p.parquet"
    pq.write_table(pa.table({"prompt": [str(i) * 50 for i in range(5000)]}), path)
    content = bytearray(path.read_bytes())
    content[100:4000] = bytes(3900)
    path.write_bytes(content)

    source = open_input(str(path))

    with pytest.raises(DatasetError, match=r"p\.parquet: cannot be read as Parquet: "):
        list(source.rows())


def test_files_that_disagree_about_a_column_leave_its_type_open(tmp_path: Path) -> None:
    first = pa.table({"a": [1], "b": ["x"], "c": pa.nulls(1)})
    second = pa.table({"a": ["1"], "b": ["x"], "c": [True], "d": [b"x"]})
    pq.write_table(first, tmp_path / "1.parquet")
    pq.write_table(second, tmp_path / "2.parquet")

    schema = open_input(str(tmp_path)).schema

    assert schema == pa.schema([("b", pa.string()), ("c", pa.bool_()), ("d", pa.binary())])


def test_reading_holds_only_a_little_of_a_big_row_group(tmp_path: Path) -> None:
    path = tmp_path / "p.parquet"
    text = ["x" * 500 + str(i) for i in range(100_000)]
    pq.write_table(pa.table({"prompt": text}), path, row_group_size=100_000, use_dictionary=False)
    del text
    before = pa.total_allocated_bytes()

    peak = max(
        pa.total_allocated_bytes() - before
        for row in open_input(str(path)).rows()
        if row.row_index % 500 == 0
    )

    assert peak < 8 << 20  # of 50 MB
