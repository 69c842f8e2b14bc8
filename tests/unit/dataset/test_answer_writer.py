from __future__ import annotations

import contextlib
import dataclasses
import json
import os
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from furiosa_llm.dataset.answer import answer_of, error_answer
from furiosa_llm.dataset.manifest import Manifest
from furiosa_llm.dataset.packed_logprobs import PackedLogprobs
from furiosa_llm.dataset.schema import ANSWER_SCHEMA
from furiosa_llm.dataset.writer import AnswerWriter
from furiosa_llm.errors import (
    DatasetError,
    InvalidRowError,
    RequestError,
    StructureFailedError,
)
from furiosa_llm.outputs import CompletionOutput, Logprob, RequestMetrics, RequestOutput
from tests.unit.dataset.dataset_factories import make_answer, parsed, run_python, write_answers

MANIFEST = Manifest(model="tiny")
TWO_COMPLETIONS = [
    CompletionOutput(index=0, text="a", token_ids=[1], finish_reason="stop", stop_reason=2),
    CompletionOutput(
        index=1,
        text="b",
        token_ids=[3],
        finish_reason="length",
        cumulative_logprob=-0.5,
        logprobs=[{3: Logprob(logprob=-0.5, rank=1, decoded_token="b")}],
    ),
]


def make_output(
    completions: list[CompletionOutput], *, error: RequestError | None = None
) -> RequestOutput:
    return RequestOutput(
        request_id="x",
        prompt="Hi",
        prompt_token_ids=[1, 2],
        outputs=completions,
        finished=True,
        num_cached_tokens=1,
        num_output_tokens=9,
        metrics=RequestMetrics(queue_s=0.25, peak_blocks=3),
        replica=1,
        error=error,
    )


def test_the_output_has_the_promised_columns_and_types(tmp_path: Path) -> None:
    table = write_answers(tmp_path / "out.parquet", [make_answer(0, carried={"topic": "math"})])

    assert table.schema.remove_metadata() == pa.schema(
        [*ANSWER_SCHEMA, pa.field("topic", pa.string())]
    )
    assert ANSWER_SCHEMA.field("row_index") == pa.field("row_index", pa.int64(), nullable=False)
    assert [field.name for field in ANSWER_SCHEMA if field.nullable] == [
        "completions", "cumulative_logprob", "logprobs", "prompt_logprobs", "stop_reason",
        "error_code", "error", "queue_s", "ttft_s", "tpot_s", "e2e_s",
    ]  # fmt: skip


def test_an_answer_becomes_a_row(tmp_path: Path) -> None:
    record = parsed({"id": "q", "prompt": "Hi", "topic": "math"})

    answer = answer_of(record, make_output(TWO_COMPLETIONS[:1]))
    row = write_answers(tmp_path / "o", [make_answer(0), make_answer(1), make_answer(2), answer])

    assert row.slice(3).to_pylist() == [
        {
            "row_index": 3, "request_id": "q", "text": "a", "token_ids": [1], "completions": None,
            "cumulative_logprob": None, "logprobs": None, "prompt_logprobs": None,
            "finish_reason": "stop", "stop_reason": "2", "error_code": None, "error": None,
            "num_prompt_tokens": 2, "num_output_tokens": 9, "num_cached_tokens": 1,
            "queue_s": 0.25, "ttft_s": None, "tpot_s": None, "e2e_s": None, "peak_blocks": 3,
            "block_seconds": 0.0, "num_preemptions": 0, "num_recomputed_tokens": 0, "replica": 1,
            "topic": "math",
        }
    ]  # fmt: skip


def test_several_answers_to_one_prompt_are_all_kept(tmp_path: Path) -> None:
    record = parsed({"prompt": "Hi", "n": 2})

    answer = answer_of(record, make_output(TWO_COMPLETIONS))
    table = write_answers(tmp_path / "o", [*map(make_answer, range(3)), answer])

    assert table.column("text").to_pylist()[3] == "a"
    assert table.column("completions").to_pylist() == [
        *[None] * 3,
        [
            {"index": 0, "text": "a", "token_ids": [1], "finish_reason": "stop",
             "stop_reason": "2", "cumulative_logprob": None, "logprobs": None},
            {"index": 1, "text": "b", "token_ids": [3], "finish_reason": "length",
             "stop_reason": None, "cumulative_logprob": -0.5,
             "logprobs": [[{"token_id": 3, "token": "b", "logprob": -0.5, "rank": 1}]]},
        ],
    ]  # fmt: skip


def test_log_probabilities_are_lists_by_token_and_candidate(tmp_path: Path) -> None:
    likely = Logprob(logprob=-0.25, rank=1, decoded_token="é")
    chosen = Logprob(logprob=-2.5, rank=7, decoded_token="b")
    completion = dataclasses.replace(
        TWO_COMPLETIONS[1], logprobs=[{3: chosen, 9: likely}, {}, {9: likely}]
    )
    output = dataclasses.replace(make_output([completion]), prompt_logprobs=[None, {9: likely}])
    answer = answer_of(parsed({"prompt": "Hi"}), output)
    rows = [make_answer(0), dataclasses.replace(answer, row_index=1), make_answer(2)]

    table = write_answers(tmp_path / "o", rows, rows_per_part=2)

    as_likely = {"token_id": 9, "token": "é", "logprob": -0.25, "rank": 1}
    as_chosen = {"token_id": 3, "token": "b", "logprob": -2.5, "rank": 7}
    assert table.column("logprobs").to_pylist() == [
        None, [[as_chosen, as_likely], [], [as_likely]], None,
    ]  # fmt: skip
    assert table.column("prompt_logprobs").to_pylist() == [None, [None, [as_likely]], None]
    assert table.column("cumulative_logprob").to_pylist() == [None, -0.5, None]


def test_log_probabilities_count_as_memory(tmp_path: Path) -> None:
    entry = Logprob(logprob=-0.25, rank=1, decoded_token="a")
    packed = PackedLogprobs.of([{3: entry}] * (1 << 20))

    with AnswerWriter(tmp_path / "o", manifest=MANIFEST, rows_per_part=100) as writer:
        for index in range(3):
            writer.write(make_answer(index, logprobs=packed))

        assert list(tmp_path.glob("o.parts/part-*"))


def test_an_answer_that_lost_its_form_is_a_failed_row() -> None:
    completion = CompletionOutput(index=0, text="{", token_ids=[1], finish_reason="error")
    output = make_output([completion], error=StructureFailedError("too complex"))

    answer = answer_of(parsed({"prompt": "Hi"}), output)

    assert (answer.text, answer.finish_reason, answer.stop_reason) == ("{", "error", None)
    assert (answer.error_code, answer.error) == ("structure_failed", "too complex")


def test_an_answer_that_was_not_finished_is_called_cancelled() -> None:
    output = make_output([CompletionOutput(index=0, text="a", token_ids=[1])])

    assert answer_of(parsed({"prompt": "Hi"}), output).finish_reason == "cancelled"


def test_a_failed_row_says_why_and_keeps_its_columns(tmp_path: Path) -> None:
    answer = error_answer(0, "q", {"topic": "math"}, InvalidRowError("prompt is empty"))

    row = write_answers(tmp_path / "o", [answer]).to_pylist()[0]

    assert row["finish_reason"] == "error"
    assert (row["error_code"], row["error"]) == ("invalid_row", "prompt is empty")
    assert (row["text"], row["token_ids"], row["num_prompt_tokens"]) == ("", [], 0)
    assert (row["request_id"], row["topic"], row["e2e_s"]) == ("q", "math", None)


def test_no_rows_give_a_valid_file_without_rows(tmp_path: Path) -> None:
    table = write_answers(tmp_path / "out.parquet", [])

    assert len(table) == 0
    assert table.schema.remove_metadata() == ANSWER_SCHEMA


def test_the_output_appears_only_when_it_is_complete(tmp_path: Path) -> None:
    output = tmp_path / "out.parquet"

    with AnswerWriter(output, manifest=MANIFEST, rows_per_part=2) as writer:
        for index in range(5):
            writer.write(make_answer(index))
        during = sorted(path.name for path in tmp_path.rglob("*"))
        writer.finish({"note": "x"})

    assert during == [
        "lock", "manifest.json", "out.parquet.parts", "part-000000.parquet", "part-000001.parquet",
    ]  # fmt: skip
    assert [path.name for path in tmp_path.iterdir()] == ["out.parquet"]
    metadata = pq.read_schema(output).metadata
    assert metadata[b"note"] == b"x"
    assert json.loads(metadata[b"furiosa_llm.manifest"])["ended_at"] is not None


def test_the_manifest_of_the_end_replaces_that_of_the_start(tmp_path: Path) -> None:
    output = tmp_path / "out.parquet"

    with AnswerWriter(output, manifest=MANIFEST) as writer:
        writer.finish(MANIFEST.ended({"answered": 3}).metadata())

    manifest = json.loads(pq.read_schema(output).metadata[b"furiosa_llm.manifest"])
    assert manifest["counts"] == {"answered": 3}


def test_an_interrupted_run_leaves_every_finished_row(tmp_path: Path) -> None:
    output = tmp_path / "out.parquet"

    with (
        contextlib.suppress(KeyboardInterrupt),
        AnswerWriter(output, manifest=MANIFEST, rows_per_part=2) as writer,
    ):
        for index in (4, 0, 9):
            writer.write(make_answer(index))
        raise KeyboardInterrupt

    parts = sorted((tmp_path / "out.parquet.parts").glob("part-*"))
    assert not output.exists()
    assert [pq.read_table(part).column("row_index").to_pylist() for part in parts] == [[0, 4], [9]]


def test_a_block_that_ends_without_finishing_keeps_the_parts(tmp_path: Path) -> None:
    with AnswerWriter(tmp_path / "o", manifest=MANIFEST) as writer:
        writer.write(make_answer(0))

    assert sorted(path.name for path in (tmp_path / "o.parts").iterdir()) == [
        "manifest.json", "part-000000.parquet",
    ]  # fmt: skip


def test_much_text_is_not_held_in_memory(tmp_path: Path) -> None:
    text = "x" * (1 << 20)

    with AnswerWriter(tmp_path / "o", manifest=MANIFEST) as writer:
        for index in range(70):
            writer.write(make_answer(index, text=text))
        parts = list((tmp_path / "o.parts").glob("part-*"))

    assert len(parts) == 1


def test_a_folder_gets_files_in_row_order_and_the_manifest(tmp_path: Path) -> None:
    output = tmp_path / "out"
    answers = [make_answer(index) for index in reversed(range(70_000))]

    with AnswerWriter(f"{output}/", manifest=MANIFEST, rows_per_part=35_000) as writer:
        for answer in answers:
            writer.write(answer)
        writer.finish({})

    files = sorted(path.name for path in output.iterdir())
    assert files == ["_manifest.json", "part-000000.parquet", "part-000001.parquet"]
    indexes = [pq.read_table(output / name).column("row_index") for name in files[1:]]
    assert list(map(len, indexes)) == [65_536, 4_464]
    assert pa.chunked_array([*indexes[0].chunks, *indexes[1].chunks]).to_pylist() == list(
        range(70_000)
    )
    assert json.loads((output / "_manifest.json").read_text())["model"] == "tiny"


def test_a_folder_without_rows_has_one_file(tmp_path: Path) -> None:
    output = tmp_path / "out"
    output.mkdir()

    table = write_answers(output, [])

    assert len(table) == 0
    assert sorted(path.name for path in output.iterdir()) == [
        "_manifest.json", "part-000000.parquet",
    ]  # fmt: skip


def test_an_old_output_stays_until_the_new_one_is_complete(tmp_path: Path) -> None:
    output = tmp_path / "out.parquet"
    write_answers(output, [make_answer(0, text="old")])

    with AnswerWriter(output, manifest=MANIFEST, overwrite=True) as writer:
        writer.write(make_answer(0, text="new"))
        during = pq.read_table(output).column("text").to_pylist()
        writer.finish({})

    assert during == ["old"]
    assert pq.read_table(output).column("text").to_pylist() == ["new"]


def test_an_old_folder_is_replaced_as_a_whole(tmp_path: Path) -> None:
    output = tmp_path / "out"
    output.mkdir()
    (output / "part-000007.parquet").write_text("old")

    write_answers(output, [make_answer(0)], overwrite=True)

    assert sorted(path.name for path in tmp_path.rglob("*")) == [
        "_manifest.json", "out", "part-000000.parquet",
    ]  # fmt: skip


def test_an_output_that_appeared_meanwhile_is_left_as_it_is(tmp_path: Path) -> None:
    output = tmp_path / "out.parquet"

    with AnswerWriter(output, manifest=MANIFEST) as writer:
        writer.write(make_answer(0))
        output.write_text("precious")
        with pytest.raises(DatasetError, match="exists already"):
            writer.finish({})

    assert output.read_text() == "precious"
    assert (tmp_path / "out.parquet.parts").is_dir()


def test_the_rows_of_an_unfinished_run_are_dropped_only_if_asked(tmp_path: Path) -> None:
    output = tmp_path / "out.parquet"
    with AnswerWriter(output, manifest=MANIFEST) as writer:
        writer.write(make_answer(0))

    with (
        pytest.raises(DatasetError, match="holds the rows of an unfinished run"),
        AnswerWriter(output, manifest=MANIFEST),
    ):
        pass
    table = write_answers(output, [make_answer(0)], overwrite=True)

    assert len(table) == 1


def test_new_files_follow_the_umask(tmp_path: Path) -> None:
    old = os.umask(0o027)
    try:
        write_answers(tmp_path / "out.parquet", [])
    finally:
        os.umask(old)

    assert (tmp_path / "out.parquet").stat().st_mode & 0o777 == 0o640


FULL_DISK = """
import random, resource, sys
from pathlib import Path
from furiosa_llm.dataset.manifest import Manifest
from furiosa_llm.dataset.step_stats import StepStatsWriter
from furiosa_llm.dataset.writer import AnswerWriter
from furiosa_llm.errors import DatasetError
from tests.unit.dataset.dataset_factories import make_answer, make_step

output, limit = Path(sys.argv[1]), int(sys.argv[2])
noise = random.Random(0)
try:
    with AnswerWriter(output, manifest=Manifest(model="tiny"), rows_per_part=2) as writer:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
        for index in range(4):
            writer.write(make_answer(index, text=noise.randbytes(5000).hex()))
        writer.finish({})
except DatasetError as error:
    print(error)
try:
    with StepStatsWriter.open(output.with_name("steps.parquet"), rows_per_group=1000) as steps:
        for step in range(2500):
            steps.write(make_step(step, noise.random()))
except DatasetError as error:
    print(error)
"""


@pytest.mark.parametrize(("limit", "failing"), [(8000, "part-000000"), (26_000, "merged")])
def test_a_full_disk_is_one_line_and_leaves_no_half_file(
    tmp_path: Path, limit: int, failing: str
) -> None:
    messages = run_python(FULL_DISK, str(tmp_path / "out.parquet"), str(limit)).splitlines()

    parts = tmp_path / "out.parquet.parts"
    assert messages == [
        f"{parts / failing}.parquet: cannot be written: File too large",
        f"{tmp_path}/steps.parquet: cannot be written: File too large",
    ]
    # Without a row saved there is nothing to keep, and nothing in the way of the next run.
    kept = [parts.name] if failing == "merged" else []
    assert [path.name for path in tmp_path.iterdir()] == kept
    assert not list(parts.glob("*.tmp"))
    assert len(list(parts.glob("part-*"))) == (0 if failing == "part-000000" else 2)


def test_a_second_run_to_the_same_output_is_refused_while_the_first_lives(tmp_path: Path) -> None:
    output = tmp_path / "out.parquet"
    with AnswerWriter(output, manifest=MANIFEST) as writer:
        writer.write(make_answer(0))

        for overwrite in (False, True):
            second = AnswerWriter(output, manifest=MANIFEST, overwrite=overwrite)
            with pytest.raises(DatasetError, match="is being written by another run"), second:
                pass

        writer.finish({})
    assert pq.read_table(output).num_rows == 1


def test_a_dead_run_without_a_finished_row_is_in_no_ones_way(tmp_path: Path) -> None:
    output = tmp_path / "out.parquet"
    parts = tmp_path / "out.parquet.parts"
    parts.mkdir()
    for name in ("lock", "manifest.json", "part-000000.parquet.tmp"):
        (parts / name).touch()

    table = write_answers(output, [make_answer(0)])

    assert len(table) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["out.parquet"]


def test_a_run_that_fails_before_its_first_part_leaves_nothing(tmp_path: Path) -> None:
    def fail() -> None:
        with AnswerWriter(tmp_path / "out.parquet", manifest=MANIFEST):
            raise KeyError("something else")

    with pytest.raises(KeyError):
        fail()

    assert list(tmp_path.iterdir()) == []
