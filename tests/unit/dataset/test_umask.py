from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from furiosa_llm.dataset.join_shards import join_shards
from furiosa_llm.dataset.manifest import Manifest
from furiosa_llm.dataset.shard import Shard
from furiosa_llm.dataset.step_stats import StepStatsWriter
from furiosa_llm.dataset.writer import AnswerWriter
from tests.unit.dataset.dataset_factories import make_answer, make_step


@pytest.fixture(params=[0o027, 0o002])
def umask(request: pytest.FixtureRequest) -> Iterator[int]:
    before = os.umask(request.param)
    yield request.param
    os.umask(before)


def mode(path: Path) -> int:
    return path.stat().st_mode & 0o777


def test_every_output_gets_the_umask_of_the_user(tmp_path: Path, umask: int) -> None:
    whole = Manifest(model="m")
    shard = Manifest(model="m", shard=Shard(1, 2))
    for output, manifest in (("file", whole), ("folder/", whole), ("shard", shard)):
        with AnswerWriter(f"{tmp_path}/{output}", manifest=manifest) as writer:
            writer.write(make_answer(0))
            writer.finish(manifest.ended({"num_rows": 1, "num_failed": 0}).metadata())
    join_shards(str(tmp_path / "joined"), [tmp_path / "shard"], allow_missing=True)
    with StepStatsWriter.open(tmp_path / "steps") as steps:
        steps.write(make_step(1))

    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert {mode(path) for path in files} == {0o666 & ~umask}
    assert len(files) == 6
    assert mode(tmp_path / "folder") == 0o777 & ~umask
