"""The outputs of shards, joined, are the output of one run."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from furiosa_llm.dataset.earlier_run import run_of_output
from furiosa_llm.dataset.join_shards import join_shards
from furiosa_llm.dataset.manifest import MANIFEST_KEY, InputFile, Manifest
from furiosa_llm.dataset.shard import WHOLE, Shard
from furiosa_llm.dataset.target import OutputTarget
from furiosa_llm.dataset.writer import AnswerWriter
from furiosa_llm.errors import ConfigError, DatasetError
from tests.unit.dataset.dataset_factories import make_answer

Row = Mapping[str, object]

VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**70), 2**70)
    | st.floats(allow_nan=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=5,
)
NAMES = st.sampled_from(["a", "b", "text", "input_text", "carried", "furiosa_llm.as_read", "../x"])
INPUT = InputFile(path="in.jsonl", num_bytes=7, hash="blake2b:1")


def write(output: Path | str, rows: Sequence[Row], shard: Shard = WHOLE, **changes: Any) -> Path:
    """Writes the answers to the rows that are in a shard."""
    schema = changes.pop("carried_schema", None)
    template = changes.pop("chat_template_hash", None)
    identity = {"model": "tiny", "seed": 3, "shard": str(shard)} | changes
    manifest = Manifest(
        model="tiny",
        chat_template_hash=template,
        inputs=(INPUT,),
        identity=identity,
        shard=shard,
    )
    with AnswerWriter(output, manifest=manifest, rows_per_part=3, carried_schema=schema) as writer:
        indexes = [index for index in range(len(rows)) if shard.has(index)]
        for index in reversed(indexes):
            writer.write(make_answer(index, carried=rows[index]))
        counts = {"num_rows": len(indexes), "num_failed": 0}
        writer.finish(manifest.ended(counts).metadata())
    return Path(output)


def write_shards(folder: Path, rows: Sequence[Row], count: int, **changes: Any) -> list[Path]:
    shards = [Shard(number, count) for number in range(1, count + 1)]
    return [write(folder / f"{shard.number}.parquet", rows, shard, **changes) for shard in shards]


def assert_joined_equals_whole(
    folder: Path, rows: Sequence[Row], count: int, **changes: Any
) -> None:
    whole = pq.read_table(write(folder / "whole.parquet", rows, **changes))

    join_shards(str(folder / "joined"), write_shards(folder, rows, count, **changes)[::-1])

    joined = pq.read_table(folder / "joined")
    assert joined.schema.remove_metadata() == whole.schema.remove_metadata()
    assert joined.equals(whole)


@settings(max_examples=30)
@given(st.lists(st.dictionaries(NAMES, VALUES, max_size=4), max_size=12), st.integers(1, 5))
def test_joined_shards_equal_one_run(rows: list[Row], count: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        assert_joined_equals_whole(Path(folder), rows, count + 1)


def test_values_that_have_one_type_only_within_a_shard_come_out_as_they_went_in(
    tmp_path: Path,
) -> None:
    values: list[object] = [1, "x", {"b": 1, "a": [2]}, 2.5, None, {"c": None}, 2**60, True]

    assert_joined_equals_whole(tmp_path, [{"v": value} for value in values], 3)


def test_declared_types_are_kept(tmp_path: Path) -> None:
    schema = pa.schema(
        [
            ("small", pa.int8()),
            ("word", pa.dictionary(pa.int8(), pa.string())),
            ("text", pa.large_string()),  # also a column of the answers
            ("odd", pa.list_(pa.date64())),  # one that cannot be kept
        ]
    )
    rows = [{"small": i, "word": f"w{i % 2}", "text": str(i), "odd": [i]} for i in range(7)]

    assert_joined_equals_whole(tmp_path, rows, 3, carried_schema=schema)


def test_folders_are_joined_too(tmp_path: Path) -> None:
    rows = [{"v": index} for index in range(10)]
    shards = [write(f"{tmp_path}/{i}/", rows, Shard(i, 2)) for i in (1, 2)]

    summary = join_shards(str(tmp_path / "joined"), shards)

    assert summary.num_rows == 10
    assert pq.read_table(tmp_path / "joined").column("v").to_pylist() == list(range(10))


def test_a_missing_shard_is_named_and_nothing_is_written(tmp_path: Path) -> None:
    shards = write_shards(tmp_path, [{"v": index} for index in range(9)], 4)
    before = sorted(tmp_path.iterdir())

    with pytest.raises(DatasetError, match=r"2 of 4 shards are missing: 2/4, 4/4; .*--allow-miss"):
        join_shards(str(tmp_path / "joined"), [shards[0], shards[2]])

    assert sorted(tmp_path.iterdir()) == before


def test_what_is_there_is_joined_on_request(tmp_path: Path) -> None:
    shards = write_shards(tmp_path, [{"v": index} for index in range(9)], 4)

    summary = join_shards(str(tmp_path / "joined"), [shards[3], shards[0]], allow_missing=True)

    assert summary.missing == (Shard(2, 4), Shard(3, 4))
    joined = pq.read_table(tmp_path / "joined")
    assert joined.column("row_index").to_pylist() == [0, 3, 4, 7, 8]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model": "other"}, "model is 'tiny' and 'other'"),
        ({"seed": 4}, "seed is 3 and 4"),
        ({"seed": None}, "seed is 3 and None"),
    ],
)
def test_shards_of_different_runs_are_refused(
    tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    first = write(tmp_path / "1", [{}] * 4, Shard(1, 2))
    second = write(tmp_path / "2", [{}] * 4, Shard(2, 2), **change)

    with pytest.raises(ConfigError, match=message):
        join_shards(str(tmp_path / "joined"), [first, second])


def test_the_same_input_in_another_place_is_the_same(tmp_path: Path) -> None:
    first = write(tmp_path / "1", [{}] * 4, Shard(1, 2))
    moved = InputFile(path="/mnt/in.jsonl", num_bytes=7, hash=INPUT.hash)
    second = write(tmp_path / "2", [{}] * 4, Shard(2, 2), inputs=(moved,))

    assert join_shards(str(tmp_path / "joined"), [first, second]).num_rows == 4


def test_a_shard_given_twice_is_refused(tmp_path: Path) -> None:
    first, second = write_shards(tmp_path, [{}] * 4, 2)

    with pytest.raises(ConfigError, match=r"both hold shard 1/2; give one of them"):
        join_shards(str(tmp_path / "joined"), [first, second, first])


def test_shards_of_streams_of_different_lengths_are_refused(tmp_path: Path) -> None:
    stdin = (InputFile(path="-"),)
    first = write(tmp_path / "1", [{}] * 8, Shard(1, 2), inputs=stdin)
    second = write(tmp_path / "2", [{}] * 4, Shard(2, 2), inputs=stdin)

    with pytest.raises(ConfigError, match="were not of the same input"):
        join_shards(str(tmp_path / "joined"), [first, second])


@pytest.mark.parametrize("kept", [slice(0, 2), slice(1, 3)])
def test_a_shard_that_lost_rows_is_refused(tmp_path: Path, kept: slice) -> None:
    first, second = write_shards(tmp_path, [{}] * 6, 2)
    table = pq.read_table(first)
    pq.write_table(table.slice(kept.start, 2), first)

    with pytest.raises(DatasetError, match=r"holds 2 of the 3 rows of shard 1/2"):
        join_shards(str(tmp_path / "joined"), [first, second])


def test_a_shard_with_a_row_twice_is_refused(tmp_path: Path) -> None:
    first, second = write_shards(tmp_path, [{}] * 6, 2)
    table = pq.read_table(first)
    pq.write_table(table.take(pa.array([0, 1, 1])), first)

    with pytest.raises(DatasetError, match=r"rows from 0 on are not all there once"):
        join_shards(str(tmp_path / "joined"), [first, second])
    assert not (tmp_path / "joined").exists()
    assert not (tmp_path / "joined.joining").exists()


def test_what_is_no_finished_shard_is_refused_in_one_line(tmp_path: Path) -> None:
    whole = write(tmp_path / "whole", [{}] * 2)
    (tmp_path / "text").write_text("no Parquet")
    (tmp_path / "open.parts").mkdir()
    (tmp_path / "empty").mkdir()
    for name, message in (
        (whole.name, "not the output of a run with --shard"),
        ("text", "cannot be read as the output of a shard"),
        ("open", "is not finished"),
        ("empty", "holds no part-"),
        ("nothing", "does not exist"),
    ):
        with pytest.raises(DatasetError, match=message):
            join_shards(str(tmp_path / "joined"), [tmp_path / name])


def test_the_manifest_tells_of_all_shards(tmp_path: Path) -> None:
    shards = write_shards(tmp_path, [{}] * 5, 2)

    join_shards(str(tmp_path / "joined"), shards)

    manifest = json.loads(pq.read_schema(tmp_path / "joined").metadata[MANIFEST_KEY.encode()])
    assert manifest["shard"] == {"number": 1, "count": 1}
    assert manifest["counts"]["num_rows"] == 5
    assert [one["counts"]["num_rows"] for one in manifest["joined"]] == [3, 2]
    assert manifest["joined"][1]["shard"] == {"number": 2, "count": 2}
    assert manifest["identity"]["shard"] == "1/1"


def test_a_run_is_resumed_from_its_joined_shards(tmp_path: Path) -> None:
    write_shards(tmp_path, [{}] * 4, 2)
    shards = [tmp_path / "1.parquet", tmp_path / "2.parquet"]
    identity = {"model": "tiny", "seed": 3}

    join_shards(str(tmp_path / "whole"), shards)
    join_shards(str(tmp_path / "first"), shards[:1], allow_missing=True)

    for name, shard, is_same in (
        ("whole", "1/1", True),
        ("whole", "1/2", False),
        ("first", "1/1", False),
        ("first", "1/2", False),
    ):
        run = run_of_output(OutputTarget.of(tmp_path / name))
        assert run is not None
        manifest = Manifest(model="tiny", identity=identity | {"shard": shard})
        assert run.is_same_job(manifest) == is_same, (name, shard)


def test_an_output_that_is_a_shard_is_refused(tmp_path: Path) -> None:
    first, second = write_shards(tmp_path, [{}] * 4, 2)

    with pytest.raises(ConfigError, match=rf"^{second} is an input, too; choose another output$"):
        join_shards(str(second), [first, second], overwrite=True)


def test_shards_with_different_chat_templates_are_refused(tmp_path: Path) -> None:
    shards = [
        write(tmp_path / f"{i}.parquet", [{}] * 4, Shard(i, 2), chat_template_hash=f"blake2b:{i}")
        for i in (1, 2)
    ]

    with pytest.raises(ConfigError, match="the chat template"):
        join_shards(str(tmp_path / "joined"), shards)


def test_one_missing_shard_is_told_in_the_singular(tmp_path: Path) -> None:
    first, _ = write_shards(tmp_path, [{}] * 4, 2)

    with pytest.raises(DatasetError, match=r"^1 of 2 shards is missing: 2/2; name its output, too"):
        join_shards(str(tmp_path / "joined"), [first])
