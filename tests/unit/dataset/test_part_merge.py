from __future__ import annotations

import random
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from furiosa_llm.dataset.answer import AnswerRow
from furiosa_llm.dataset.merge import merged_tables
from furiosa_llm.dataset.parts import PartInfo, read_part_info, write_part
from furiosa_llm.errors import DatasetError
from tests.unit.dataset.dataset_factories import make_answer


def write_parts(folder: Path, batches: Iterable[Sequence[AnswerRow]]) -> list[PartInfo]:
    return [
        write_part(folder / f"part-{number:06d}.parquet", batch, {})
        for number, batch in enumerate(batches)
    ]


def batches_of(order: Sequence[int], size: int) -> list[list[AnswerRow]]:
    return [
        [make_answer(index) for index in order[start : start + size]]
        for start in range(0, len(order), size)
    ]


def rows_of_tables(tables: Iterable[pa.Table]) -> list[tuple[int, str, list[int]]]:
    return [
        (row["row_index"], row["text"], row["token_ids"])
        for table in tables
        for row in table.select(["row_index", "text", "token_ids"]).to_pylist()
    ]


@settings(max_examples=15)
@given(st.integers(1, 30).flatmap(lambda n: st.permutations(range(n))), st.integers(1, 9))
def test_rows_come_out_in_order_however_they_went_in(order: list[int], size: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        infos = write_parts(Path(folder), batches_of(order, size))
        rows = rows_of_tables(merged_tables(infos, Path(folder), max_open=3))

    assert rows == [(i, f"answer {i}", [i, 7]) for i in range(len(order))]


def test_groups_of_many_rows_are_merged_across_their_borders(tmp_path: Path) -> None:
    order = list(range(3000))
    random.Random(0).shuffle(order)

    infos = write_parts(tmp_path, batches_of(order, 1100))
    rows = rows_of_tables(merged_tables(infos, tmp_path))

    assert [index for index, _, _ in rows] == list(range(3000))


def test_a_part_tells_about_itself_without_being_read(tmp_path: Path) -> None:
    rows = [make_answer(8, carried={"b": 1, "a": "x"}), make_answer(2, carried={"a": None})]

    info = write_part(tmp_path / "p.parquet", rows, {"a": pa.string()})

    assert (info.num_rows, info.first_row, info.last_row) == (2, 2, 8)
    assert {name: column.first for name, column in info.carried.items()} == {
        "a": (2, 0), "b": (8, 0),
    }  # fmt: skip
    assert read_part_info(info.path) == info


@pytest.mark.parametrize("order", [[0, 1, 1, 2], [0, 2, 3], [1, 2]])
def test_a_row_that_is_missing_or_there_twice_is_a_bug(tmp_path: Path, order: list[int]) -> None:
    infos = write_parts(tmp_path, batches_of(order, 2))

    with pytest.raises(AssertionError, match="not all there once"):
        list(merged_tables(infos, tmp_path))


def test_a_part_that_was_damaged_is_named(tmp_path: Path) -> None:
    infos = write_parts(tmp_path, batches_of([0, 1, 2, 3], 2))
    infos[1].path.write_bytes(b"nothing")

    with pytest.raises(DatasetError, match=r"part-000001\.parquet: a part of the output cannot be"):
        list(merged_tables(infos, tmp_path))


def test_a_straggler_does_not_make_the_merge_hold_everything(tmp_path: Path) -> None:
    text = "x" * 4000
    order = [*range(1, 6000), 0]  # the first row is the last to finish
    infos = write_parts(
        tmp_path,
        (
            [make_answer(index, text=f"{index}{text}") for index in order[start : start + 600]]
            for start in range(0, 6000, 600)
        ),
    )
    before = pa.total_allocated_bytes()

    peak = num_rows = 0
    for table in merged_tables(infos, tmp_path):
        num_rows += len(table)
        peak = max(peak, pa.total_allocated_bytes() - before)

    assert num_rows == 6000
    assert peak < 12 << 20  # of 24 MB: a few row groups


def test_memory_depends_on_the_parts_that_may_be_open_and_not_on_all(tmp_path: Path) -> None:
    text = "x" * 16_000
    order = list(range(2400))
    random.Random(0).shuffle(order)
    infos = write_parts(
        tmp_path,
        (
            [make_answer(index, text=f"{index}{text}") for index in order[start : start + 100]]
            for start in range(0, 2400, 100)
        ),
    )
    before = pa.total_allocated_bytes()

    peak = num_rows = 0
    for table in merged_tables(infos, tmp_path, max_open=5):
        num_rows += len(table)
        peak = max(peak, pa.total_allocated_bytes() - before)

    assert num_rows == 2400
    assert peak < 24 << 20  # of 38 MB


def test_many_small_parts_are_merged_with_one_file_between(tmp_path: Path) -> None:
    order = list(range(600))
    random.Random(0).shuffle(order)
    infos = write_parts(tmp_path, batches_of(order, 3))

    tables = list(merged_tables(infos, tmp_path, max_open=4))

    assert sum(map(len, tables)) == 600
    assert [path.name for path in tmp_path.glob("merge-*")] == ["merge-0-000000.parquet"]
