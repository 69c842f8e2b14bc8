from __future__ import annotations

import contextlib
import dataclasses
import shutil
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from furiosa_llm.dataset.step_stats import StepStatsWriter
from furiosa_llm.errors import DatasetError
from furiosa_llm.outputs import StepStats
from tests.unit.dataset.dataset_factories import make_step


def test_every_step_is_a_row_with_a_column_for_each_field(tmp_path: Path) -> None:
    path = tmp_path / "steps.parquet"
    steps = [make_step(index) for index in range(5)]

    with StepStatsWriter.open(path, rows_per_group=2) as writer:
        for step in steps:
            writer.write(step)
        appeared_early = path.exists()

    table = pq.read_table(path)
    assert not appeared_early
    assert table.to_pylist() == [dataclasses.asdict(step) for step in steps]
    assert pq.read_metadata(path).num_row_groups == 3
    assert [str(field.type) for field in table.schema] == [
        "int16", "int64", "double", *["int32"] * 11, *["double"] * 3,
    ]  # fmt: skip


def test_a_run_without_steps_gives_a_file_without_rows(tmp_path: Path) -> None:
    with StepStatsWriter.open(tmp_path / "steps.parquet"):
        pass

    table = pq.read_table(tmp_path / "steps.parquet")
    assert table.column_names == [field.name for field in dataclasses.fields(StepStats)]
    assert len(table) == 0


def test_the_steps_of_a_run_that_failed_are_kept(tmp_path: Path) -> None:
    with contextlib.suppress(KeyError), StepStatsWriter.open(tmp_path / "steps.parquet") as writer:
        writer.write(make_step(0))
        raise KeyError

    assert len(pq.read_table(tmp_path / "steps.parquet")) == 1


def test_what_ended_a_run_is_told_before_its_statistics(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = tmp_path / "gone"
    folder.mkdir()

    with contextlib.suppress(KeyError), StepStatsWriter.open(folder / "steps.parquet") as writer:
        writer.write(make_step(0))
        shutil.rmtree(folder)
        raise KeyError

    assert "steps.parquet: cannot be written: No such file" in caplog.text


def test_a_folder_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with (
        pytest.raises(DatasetError, match=r"none/steps\.parquet: cannot be written: No such file"),
        StepStatsWriter.open(tmp_path / "none" / "steps.parquet"),
    ):
        pass
