from __future__ import annotations

import contextlib
import dataclasses
import json
import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from furiosa_llm.dataset.answer import AnswerRow, error_answer
from furiosa_llm.dataset.manifest import Manifest
from furiosa_llm.dataset.run_start import Resume
from furiosa_llm.dataset.writer import AnswerWriter
from furiosa_llm.errors import ConfigError, DatasetError, InvalidRowError
from tests.unit.dataset.dataset_factories import make_answer

JOB = Manifest(model="tiny", identity={"model": "tiny", "temperature": 0.0, "input": ["a"]})
NUM_ROWS = 10


def carried_of(row_index: int) -> Mapping[str, object]:
    return {"note": row_index if row_index % 3 else "text"}


def answer(row_index: int) -> AnswerRow:
    return make_answer(row_index, carried=carried_of(row_index))


def failure(row_index: int) -> AnswerRow:
    error = InvalidRowError("prompt is empty")
    return error_answer(row_index, str(row_index), carried_of(row_index), error)


def make_writer(
    output: Path | str,
    *,
    manifest: Manifest = JOB,
    resume: bool = True,
    retry_failed: bool = False,
    overwrite: bool = False,
    rows_per_part: int = 2,
    seconds_per_part: float = 60.0,
    carried_schema: pa.Schema | None = None,
) -> AnswerWriter:
    def carried() -> Iterator[Mapping[str, object]]:
        return map(carried_of, range(NUM_ROWS))

    return AnswerWriter(
        output,
        manifest=manifest,
        resume=Resume(carried=carried, retry_failed=retry_failed) if resume else None,
        overwrite=overwrite,
        rows_per_part=rows_per_part,
        seconds_per_part=seconds_per_part,
        carried_schema=carried_schema,
    )


def stop_after(output: Path | str, rows: Iterable[AnswerRow], **changes: object) -> None:
    """Begins a run that ends early."""
    with (
        contextlib.suppress(KeyboardInterrupt),
        make_writer(output, resume=False, **changes) as writer,  # type: ignore[arg-type]
    ):
        for row in rows:
            writer.write(row)
        raise KeyboardInterrupt


def finish(writer: AnswerWriter, num_rows: int = NUM_ROWS) -> list[int]:
    """Does what is left, and returns which rows that were."""
    with writer:
        left = [index for index in range(num_rows) if index not in writer.saved.done]
        for index in left:
            writer.write(answer(index))
        writer.finish(writer.manifest.ended({"num_rows": num_rows, "num_failed": 0}).metadata())
    return left


def parts_of(output: Path) -> list[Path]:
    return sorted(Path(f"{output}.parts").glob("part-*"))


def unbroken(folder: Path) -> pa.Table:
    finish(make_writer(folder / "unbroken.parquet"))
    return pq.read_table(folder / "unbroken.parquet").replace_schema_metadata(None)


def read(output: Path) -> pa.Table:
    return pq.read_table(output).replace_schema_metadata(None)


def test_a_resumed_run_does_what_is_left_and_gives_the_same_file(tmp_path: Path) -> None:
    output = tmp_path / "out.parquet"
    stop_after(output, map(answer, [7, 0, 3]))

    left = finish(make_writer(output))

    assert left == [1, 2, 4, 5, 6, 8, 9]
    assert read(output).equals(unbroken(tmp_path))
    assert not Path(f"{output}.parts").exists()


@settings(max_examples=30)
@given(st.lists(st.sets(st.integers(0, NUM_ROWS - 1)), max_size=4), st.integers(1, 4))
def test_however_often_a_run_stops_every_row_is_there_once(
    tmp_path_factory: pytest.TempPathFactory, stops: list[set[int]], rows_per_part: int
) -> None:
    folder = tmp_path_factory.mktemp("stops")
    output = folder / "out.parquet"
    done: set[int] = set()
    for wanted in stops:
        with (
            contextlib.suppress(KeyboardInterrupt),
            make_writer(output, rows_per_part=rows_per_part) as writer,
        ):
            for index in wanted - done:
                assert index not in writer.saved.done
                writer.write(answer(index))
            raise KeyboardInterrupt
        done |= wanted

    left = finish(make_writer(output))

    assert left == sorted(set(range(NUM_ROWS)) - done)
    assert read(output).equals(unbroken(folder))


def test_resuming_begins_where_nothing_is_there(tmp_path: Path) -> None:
    assert finish(make_writer(tmp_path / "out.parquet")) == list(range(NUM_ROWS))


def test_a_resumed_run_keeps_the_time_of_its_start(tmp_path: Path) -> None:
    output = tmp_path / "out.parquet"
    stop_after(output, [answer(0)], manifest=dataclasses.replace(JOB, started_at="then"))

    finish(make_writer(output))

    metadata = pq.read_schema(output).metadata
    assert json.loads(metadata[b"furiosa_llm.manifest"])["started_at"] == "then"


def test_a_changed_job_is_refused_with_every_difference_and_keeps_the_rows(tmp_path: Path) -> None:
    output = tmp_path / "out.parquet"
    stop_after(output, [answer(0)])
    identity = {"model": "tiny", "temperature": 0.7, "input": ["b"], "top_k": 5}

    with (
        pytest.raises(ConfigError) as caught,
        make_writer(output, manifest=dataclasses.replace(JOB, identity=identity)),
    ):
        pass

    assert str(caught.value).startswith(
        f"--resume: {output}.parts is of another job: temperature was 0.0, is now 0.7; "
        'input was ["a"], is now ["b"]; top_k was not given, is now 5; give the options of'
    )
    assert len(parts_of(output)) == 1


def test_a_complete_output_is_left_alone(tmp_path: Path) -> None:
    output = tmp_path / "out.parquet"
    finish(make_writer(output))
    before = output.read_bytes()

    with make_writer(output) as writer:
        assert writer.is_complete
        assert writer.manifest.counts["num_rows"] == NUM_ROWS

    assert output.read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["out.parquet"]


def test_a_complete_output_of_another_job_is_refused_or_overwritten(tmp_path: Path) -> None:
    output = tmp_path / "out.parquet"
    finish(make_writer(output))
    other = dataclasses.replace(JOB, identity={**JOB.identity, "temperature": 1.0})

    with pytest.raises(ConfigError, match=r"temperature was 0\.0, is now 1\.0"):
        finish(make_writer(output, manifest=other))
    assert finish(make_writer(output, manifest=other, overwrite=True)) == list(range(NUM_ROWS))


def test_an_unfinished_run_of_another_job_is_begun_again_if_it_may_be_overwritten(
    tmp_path: Path,
) -> None:
    output = tmp_path / "out.parquet"
    stop_after(output, map(failure, range(4)))
    other = dataclasses.replace(JOB, identity={**JOB.identity, "temperature": 1.0})

    with make_writer(output, overwrite=True) as writer:
        assert writer.num_saved == 4
    with make_writer(output, manifest=other, overwrite=True) as writer:
        assert writer.num_saved == 0
        assert parts_of(output) == []


def test_a_file_that_is_no_output_is_never_taken_for_one(tmp_path: Path) -> None:
    output = tmp_path / "out.parquet"
    output.write_text("precious")

    with pytest.raises(DatasetError, match="exists already"):
        finish(make_writer(output))

    assert [path.name for path in tmp_path.iterdir()] == ["out.parquet"]


def test_an_end_before_the_parts_were_taken_away_is_an_end(tmp_path: Path) -> None:
    output = tmp_path / "out.parquet"
    manifest = dataclasses.replace(JOB, started_at="then")
    stop_after(output, [answer(0)], manifest=manifest)
    parts = Path(f"{output}.parts")
    parts.rename(tmp_path / "kept")
    finish(make_writer(output, manifest=manifest))
    (tmp_path / "kept").rename(parts)

    with make_writer(output) as writer:
        assert writer.is_complete

    assert [path.name for path in tmp_path.iterdir()] == ["out.parquet"]


@pytest.mark.parametrize("is_folder", [False, True])
def test_a_merge_that_was_broken_off_is_done_again(tmp_path: Path, is_folder: bool) -> None:
    output = tmp_path / "out"
    name = f"{output}/" if is_folder else output
    stop_after(name, map(answer, range(4)))
    parts = Path(f"{output}.parts")
    (parts / "merged").mkdir()
    (parts / "merged" / "part-000000.parquet").touch()
    for leftover in ("merged.parquet", "merge-0-000000.parquet", "part-000009.parquet.tmp"):
        (parts / leftover).touch()

    finish(make_writer(name))

    assert pq.read_table(output).num_rows == NUM_ROWS
    assert not parts.exists()


def cut(path: Path) -> None:
    with path.open("r+b") as file:
        file.truncate(path.stat().st_size // 2)


def empty(path: Path) -> None:
    path.write_bytes(b"")


def flip(path: Path) -> None:
    """Changes a byte of the first column's data, as a disk may."""
    content = bytearray(path.read_bytes())
    content[content.index(b"\x28\xb5\x2f\xfd") + 12] ^= 0xFF  # in a frame of zstd
    path.write_bytes(content)


def alter(path: Path) -> None:
    """Changes a letter of an answer, so that the file can still be read."""
    content = path.read_bytes()
    assert b"answer 2" in content
    path.write_bytes(content.replace(b"answer 2", b"answer 9", 1))


def repeat(path: Path) -> None:
    path.write_bytes(path.with_name("part-000000.parquet").read_bytes())


@pytest.mark.parametrize("damage", [cut, empty, flip, alter, repeat])
def test_a_damaged_part_is_told_of_and_its_rows_are_done_again(
    tmp_path: Path, damage: object, caplog: pytest.LogCaptureFixture
) -> None:
    assert callable(damage)
    output = tmp_path / "out.parquet"
    stop_after(output, map(answer, range(6)))
    damage(parts_of(output)[1])

    left = finish(make_writer(output))

    assert left == [2, 3, 6, 7, 8, 9]
    assert "part-000001.parquet is damaged, its rows are done again" in caplog.text
    assert read(output).equals(unbroken(tmp_path))


def test_a_part_that_may_not_be_read_is_not_taken_for_damaged(tmp_path: Path) -> None:
    output = tmp_path / "out.parquet"
    stop_after(output, map(answer, range(2)))
    part = parts_of(output)[0]
    part.rename(tmp_path / "kept")
    part.symlink_to(part)  # as good as any error of the operating system

    with pytest.raises(DatasetError, match="cannot be read"):
        finish(make_writer(output))

    assert part.is_symlink()


def test_parts_whose_manifest_is_damaged_are_kept_and_refused(tmp_path: Path) -> None:
    output = tmp_path / "out.parquet"
    stop_after(output, [answer(0)])
    (Path(f"{output}.parts") / "manifest.json").write_text("{")

    with pytest.raises(DatasetError, match=r"manifest\.json cannot be read"):
        finish(make_writer(output))

    assert len(parts_of(output)) == 1


@pytest.mark.parametrize("resume", [False, True])
def test_failed_rows_are_kept_unless_they_are_to_be_done_again(
    tmp_path: Path, resume: bool
) -> None:
    output = tmp_path / "out.parquet"
    stop_after(output, [failure(0), failure(1), failure(2), answer(3)])

    left = finish(make_writer(output, retry_failed=resume))

    assert left == ([0, 1, 2] if resume else []) + list(range(4, NUM_ROWS))
    assert read(output).equals(unbroken(tmp_path)) is resume


@pytest.mark.parametrize("is_folder", [False, True])
@pytest.mark.parametrize("carried_schema", [None, pa.schema([("note", pa.string())])])
def test_failed_rows_of_a_complete_output_are_done_again_and_replaced(
    tmp_path: Path,
    is_folder: bool,
    carried_schema: pa.Schema | None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if carried_schema is not None:
        monkeypatch.setattr(
            "tests.unit.dataset.test_resume.carried_of", lambda index: {"note": str(index)}
        )
    output = tmp_path / "out"
    name = f"{output}/" if is_folder else output
    with make_writer(name, resume=False, carried_schema=carried_schema) as writer:
        for index in range(NUM_ROWS):
            writer.write(failure(index) if index in (2, 5) else answer(index))
        counts = {"num_rows": NUM_ROWS, "num_failed": 2}
        writer.finish(JOB.ended(counts).metadata())

    with make_writer(name, retry_failed=True, carried_schema=carried_schema) as writer:
        assert len(writer.saved.done) == NUM_ROWS - 2
        for index in (2, 5):
            writer.write(answer(index))
        during = read(output).column("error_code").null_count
        writer.finish({})

    assert during == NUM_ROWS - 2
    unbroken_output = tmp_path / "unbroken.parquet"
    finish(make_writer(unbroken_output, carried_schema=carried_schema))
    assert read(output).equals(read(unbroken_output))


def test_a_retry_that_stops_leaves_the_output_and_can_go_on(tmp_path: Path) -> None:
    output = tmp_path / "out.parquet"
    with make_writer(output, resume=False) as writer:
        for index in range(NUM_ROWS):
            writer.write(failure(index) if index < 2 else answer(index))
        writer.finish(JOB.ended({"num_rows": NUM_ROWS, "num_failed": 2}).metadata())
    before = output.read_bytes()

    with (
        contextlib.suppress(KeyboardInterrupt),
        make_writer(
            output, retry_failed=True, manifest=dataclasses.replace(JOB, started_at="later")
        ) as writer,
    ):
        writer.write(answer(1))
        raise KeyboardInterrupt

    assert output.read_bytes() == before
    assert finish(make_writer(output)) == [0]
    assert read(output).equals(unbroken(tmp_path))


def test_counts_of_saved_rows_come_from_the_parts(tmp_path: Path) -> None:
    output = tmp_path / "out.parquet"
    stop_after(output, [answer(0), failure(1), answer(2)])

    with make_writer(output) as writer:
        saved = writer.saved

    assert (len(saved.done), saved.error_counts) == (3, {"invalid_row": 1})
    assert [index for index in range(4) if index in saved.failed] == [1]
    assert (saved.num_prompt_tokens, saved.num_output_tokens) == (8, 4)


def test_a_part_is_closed_when_its_oldest_row_has_waited_long_enough(tmp_path: Path) -> None:
    output = tmp_path / "out.parquet"

    with make_writer(output, rows_per_part=100, seconds_per_part=0.0) as writer:
        writer.checkpoint()
        assert parts_of(output) == []
        writer.write(answer(0))
        writer.checkpoint()
        assert len(parts_of(output)) == writer.num_saved == 1

    with make_writer(output, rows_per_part=100, seconds_per_part=3600) as writer:
        writer.write(answer(1))
        writer.checkpoint()
        assert len(parts_of(output)) == 1


def test_a_run_says_where_its_rows_are_when_it_ends_early(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    output = tmp_path / "out.parquet"

    stop_after(output, map(answer, range(3)))

    assert caplog.messages == [
        f"3 finished rows are in {output}.parts; the same command with --resume goes on"
    ]


def test_the_lock_follows_the_file_that_is_there(tmp_path: Path) -> None:
    output = tmp_path / "out.parquet"
    with make_writer(output) as first:
        first.write(answer(0))
        with pytest.raises(DatasetError, match="is being written by another run"):
            finish(make_writer(output))
        child = os.fork()
        if child == 0:  # it inherits the lock, and is gone before the next run
            os._exit(0)
        os.waitpid(child, 0)

    assert finish(make_writer(output)) == list(range(1, NUM_ROWS))
