from __future__ import annotations

import datetime
import decimal
import random
from collections.abc import Mapping
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from furiosa_llm.dataset.kinds import Kind, arrow_type, join, kind_of, kind_of_all
from furiosa_llm.dataset.manifest import Manifest
from furiosa_llm.dataset.reader import open_input
from furiosa_llm.dataset.schema import output_names
from furiosa_llm.dataset.writer import AnswerWriter
from tests.unit.dataset.dataset_factories import carried_table, make_answer

STRING = pa.string()
STRUCT_AB = pa.struct([("a", pa.int64()), ("b", STRING)])


@pytest.mark.parametrize(
    ("values", "kind", "written"),
    [
        ([1, None, 3], pa.int64(), [1, None, 3]),
        ([1, 2.5, None], pa.float64(), [1.0, 2.5, None]),
        ([True, None], pa.bool_(), [True, None]),
        (["a", "b"], STRING, ["a", "b"]),
        ([None, None], pa.null(), [None, None]),
        ([1, "a", None, [2]], STRING, ["1", "a", None, "[2]"]),
        ([True, 1], STRING, ["true", "1"]),
        ([2**60, 3], pa.int64(), [2**60, 3]),
        ([2**60, 0.5], STRING, [str(2**60), "0.5"]),
        ([2**70, 1], STRING, [str(2**70), "1"]),
        ([2**63, 1], STRING, [str(2**63), "1"]),
        ([2**63 - 1, -(2**63)], pa.int64(), [2**63 - 1, -(2**63)]),
        ([-(2**70), 1], STRING, [str(-(2**70)), "1"]),
        ([-(2**60), 1, 0.5], STRING, [str(-(2**60)), "1", "0.5"]),
        ([[1], [], None], pa.list_(pa.int64()), [[1], [], None]),
        ([[1], [2.5]], pa.list_(pa.float64()), [[1.0], [2.5]]),
        ([[]], pa.list_(pa.null()), [[]]),
        ([[1], ["a"]], STRING, ["[1]", '["a"]']),
        ([{"a": 1}, [1]], STRING, ['{"a":1}', "[1]"]),
        ([{}, {}], STRING, ["{}", "{}"]),
        ([{"a": {}}], STRING, ['{"a":{}}']),
        ([{"a": 1, "b": "x"}], STRUCT_AB, [{"a": 1, "b": "x"}]),
        ([{"b": "x"}, {"a": 1}], STRUCT_AB, [{"a": None, "b": "x"}, {"a": 1, "b": None}]),
        ([{"a": 1}, {"a": "x"}], STRING, ['{"a":1}', '{"a":"x"}']),
    ],
)
@pytest.mark.parametrize("rows_per_part", [1, 8])
def test_a_column_gets_the_type_that_its_values_share_or_becomes_json(
    tmp_path: Path,
    values: list[object],
    kind: pa.DataType,
    written: list[object],
    rows_per_part: int,
) -> None:
    table = carried_table(
        tmp_path / "o", [{"c": value} for value in values], rows_per_part=rows_per_part
    )

    assert table.schema.field("c").type == kind
    assert table.column("c").to_pylist() == written


def test_a_column_that_only_some_rows_have_is_null_elsewhere(tmp_path: Path) -> None:
    table = carried_table(tmp_path / "o", [{"a": 1}, {"b": "x"}, {}], rows_per_part=1)

    assert table.to_pylist() == [
        {"a": 1, "b": None}, {"a": None, "b": "x"}, {"a": None, "b": None},
    ]  # fmt: skip


def test_columns_stand_in_the_order_of_their_first_rows(tmp_path: Path) -> None:
    answers = [
        make_answer(1, carried={"z": 1, "new": 2}),
        make_answer(0, carried={"z": 1, "a": 3}),
    ]

    with AnswerWriter(tmp_path / "o", manifest=Manifest(model="m"), rows_per_part=1) as writer:
        for answer in answers:
            writer.write(answer)
        writer.finish({})

    assert pq.read_schema(tmp_path / "o").names[24:] == ["z", "a", "new"]


def test_an_object_with_too_many_keys_becomes_json(tmp_path: Path) -> None:
    rows = [{"counts": {f"{row}-{key}": 1 for key in range(60)}} for row in range(2)]

    table = carried_table(tmp_path / "o", rows, rows_per_part=1)

    assert table.schema.field("counts").type == STRING


def test_a_value_nested_very_deeply_becomes_json(tmp_path: Path) -> None:
    value: object = 1
    for _ in range(90):
        value = [value]

    table = carried_table(tmp_path / "o", [{"deep": value}])

    assert table.column("deep").to_pylist() == ["[" * 90 + "1" + "]" * 90]


def test_a_column_that_clashes_is_renamed_and_the_writer_says_so(tmp_path: Path) -> None:
    with AnswerWriter(tmp_path / "o", manifest=Manifest(model="m"), rows_per_part=1) as writer:
        writer.write(make_answer(0, carried={"text": "mine", "topic": 1}))
        writer.write(make_answer(1, carried={"input_text": "other"}))
        writer.finish({})

    table = pq.read_table(tmp_path / "o")
    assert writer.renamed == {"text": "input_input_text"}
    assert table.column("text").to_pylist() == ["answer 0", "answer 1"]
    assert table.column("input_input_text").to_pylist() == ["mine", None]
    assert table.column("input_text").to_pylist() == [None, "other"]


@given(st.lists(st.sampled_from(["text", "input_text", "input_input_text", "error", "x"])))
def test_no_two_columns_get_the_same_name(names: list[str]) -> None:
    chosen = output_names(dict.fromkeys(names))

    assert len(set(chosen.values())) == len(set(names))
    assert not {"text", "error"} & set(chosen.values())


@pytest.mark.parametrize("name", ["", "a.b", "carried", "carried.x", "ü\0", "row_index"])
def test_any_name_can_be_carried(tmp_path: Path, name: str) -> None:
    table = carried_table(tmp_path / "o", [{name: 1, "x": 2}])

    assert table.to_pylist() == [{"input_row_index" if name == "row_index" else name: 1, "x": 2}]


def test_types_that_the_input_declares_are_kept(tmp_path: Path) -> None:
    day = datetime.date(2026, 1, 2)
    source = pa.table(
        {
            "small": pa.array([1, None], pa.int8()),
            "when": pa.array([10**18 + 1, None], pa.timestamp("ns", "UTC")),
            "late": pa.array([2**60, None], pa.timestamp("us")),
            "price": pa.array([decimal.Decimal("1.50"), None]),
            "raw": pa.array([b"\xff", None]),
            "kind": pa.array(["x", None]).dictionary_encode(),
            "days": pa.array([[day], None], pa.list_(pa.date32())),
            "two": pa.array([[1, 2], None], pa.list_(pa.int16(), 2)),
            "large": pa.array([["a"], None], pa.large_list(pa.large_string())),
            "map": pa.array([[("k", 1.5)], None], pa.map_(STRING, pa.float32())),
            "pair": pa.array([{"a": 1, "b": "x"}, None], STRUCT_AB),
            "text": pa.array(["clash", None]),
            "half": pa.array([1.5, None], pa.float16()),
        }
    )
    pq.write_table(source, tmp_path / "in.parquet")
    rows = open_input(str(tmp_path / "in.parquet"))

    table = carried_table(
        tmp_path / "o",
        [row.data or {} for row in rows.rows()],
        rows_per_part=1,
        carried_schema=rows.schema,
    )

    kept = table.drop_columns(["half"]).rename_columns({"input_text": "text"})
    assert kept.equals(source.drop_columns(["half"]))
    assert table.column("half").to_pylist() == [1.5, None]


def test_values_of_no_declared_type_are_written_as_text(tmp_path: Path) -> None:
    values = [datetime.datetime(2026, 1, 2, 3, 4), 5]

    table = carried_table(tmp_path / "o", [{"when": value} for value in values])

    assert table.column("when").to_pylist() == ["2026-01-02T03:04:00", "5"]


VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**70), 2**70)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=3),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from("abc"), inner, max_size=3)
    ),
    max_leaves=5,
)


@given(st.lists(VALUES, max_size=5), st.randoms(use_true_random=False))
def test_the_kind_of_a_column_does_not_depend_on_how_it_is_split(
    values: list[object], chance: random.Random
) -> None:
    kinds = [kind_of_all([value]) for value in values]
    shuffled = list(kinds)
    chance.shuffle(shuffled)

    whole = arrow_type(kind_of_all(values))

    assert arrow_type(joined(kinds)) == whole
    assert arrow_type(joined(shuffled)) == whole


def joined(kinds: list[Kind]) -> Kind:
    result = kind_of(None)
    for kind in kinds:
        result = join(result, kind)
    return result


@settings(max_examples=15)
@given(
    st.lists(st.dictionaries(st.sampled_from(["a", "b", "error", ""]), VALUES), max_size=6),
    st.permutations(range(6)),
)
def test_the_output_depends_on_the_rows_and_not_on_the_order_of_their_end(
    tmp_path_factory: pytest.TempPathFactory, rows: list[Mapping[str, object]], order: list[int]
) -> None:
    folder = tmp_path_factory.mktemp("run")
    whole = carried_table(folder / "whole", rows, rows_per_part=10)

    with AnswerWriter(folder / "split", manifest=Manifest(model="m"), rows_per_part=2) as writer:
        for index in order:
            if index < len(rows):
                writer.write(make_answer(index, carried=rows[index]))
        writer.finish({})

    split = pq.read_table(folder / "split")
    assert split.select(split.column_names[24:]).equals(whole)
