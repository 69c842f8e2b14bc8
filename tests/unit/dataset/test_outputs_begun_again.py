"""An output that is there already, beside the parts of a run that is to replace it."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from furiosa_llm.dataset import run_start
from furiosa_llm.dataset.run_start import Resume
from furiosa_llm.dataset.writer import AnswerWriter
from furiosa_llm.errors import DatasetError
from tests.unit.dataset.test_resume import (
    JOB,
    NUM_ROWS,
    answer,
    carried_of,
    failure,
    finish,
    make_writer,
    stop_after,
)


def test_the_output_of_another_job_is_kept_until_it_may_be_overwritten(tmp_path: Path) -> None:
    output = tmp_path / "out.parquet"
    identity = {**JOB.identity, "temperature": 1.0}
    other = dataclasses.replace(JOB, identity=identity, started_at="later")
    finish(make_writer(output))
    before = output.read_bytes()
    stop_after(output, [answer(0)], manifest=other, overwrite=True)

    with pytest.raises(DatasetError, match="exists already"):
        finish(make_writer(output, manifest=other))

    assert output.read_bytes() == before
    assert finish(make_writer(output, manifest=other, overwrite=True)) == [*range(1, NUM_ROWS)]


def test_a_retry_that_fails_before_its_parts_are_complete_does_no_row_twice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run_start, "_ROWS_PER_PART", 2)
    output = tmp_path / "out.parquet"
    with make_writer(output, resume=False) as writer:
        for index in range(NUM_ROWS):
            writer.write(failure(index) if index < 2 else answer(index))
        writer.finish(JOB.ended({"num_rows": NUM_ROWS, "num_failed": 2}).metadata())

    def cut_off() -> Iterator[Mapping[str, object]]:
        yield from map(carried_of, range(6))
        raise DatasetError("the input is gone")

    with (
        pytest.raises(DatasetError, match="the input is gone"),
        AnswerWriter(
            output,
            manifest=dataclasses.replace(JOB, started_at="later"),
            resume=Resume(carried=cut_off, retry_failed=True),
        ),
    ):
        pass

    assert finish(make_writer(output, retry_failed=True)) == [0, 1]
