"""What makes a batch another one, so that its rows are not those of the one before."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from furiosa_llm.batch.job import BatchJob
from furiosa_llm.batch.manifest import describe_batch
from furiosa_llm.config import EngineArgs
from furiosa_llm.dataset.columns import ColumnMapping
from furiosa_llm.dataset.reader import open_input
from furiosa_llm.dataset.shard import Shard
from furiosa_llm.sampling_params import SamplingParams
from tests.unit.dataset.test_manifest import write_checkpoint


def make_job(
    tmp_path: Path,
    *,
    args: dict[str, Any] | None = None,
    params: SamplingParams | None = None,
    **changes: Any,
) -> BatchJob:
    path = tmp_path / "in.jsonl"
    path.write_text('{"prompt": "a"}\n')
    model = write_checkpoint(tmp_path / "model")
    return BatchJob(
        engine_args=EngineArgs(model=str(model), **(args or {})),
        sampling_params=params or SamplingParams(),
        input=str(path),
        output=tmp_path / "out.parquet",
        **changes,
    )


def identity(job: BatchJob) -> object:
    return describe_batch(job, open_input(job.input, shard=job.shard)).to_dict()["identity"]


@pytest.mark.parametrize(
    "changes",
    [
        {"args": {"seed": 1}},
        {"args": {"dtype": "bfloat16"}},
        {"args": {"quantization": "int8"}},
        {"args": {"deterministic": True}},
        {"args": {"max_model_len": 64}},
        {"args": {"devices": "cuda:0"}},
        {"params": SamplingParams(seed=3)},
        {"params": SamplingParams(temperature=0.5)},
        {"columns": ColumnMapping(template="Say {{ prompt }}")},
        {"columns": ColumnMapping(prompt_column="prompt")},
        {"shard": Shard(1, 2)},
    ],
    ids=str,
)
def test_what_answers_depend_on_makes_another_job(tmp_path: Path, changes: dict[str, Any]) -> None:
    assert identity(make_job(tmp_path, **changes)) != identity(make_job(tmp_path))


@pytest.mark.parametrize(
    "changes",
    [
        {"args": {"max_num_seqs": 3}},
        {"args": {"enable_prefix_caching": False}},
        {"args": {"data_parallel_size": 2}},
        {"max_errors": None},
    ],
    ids=str,
)
def test_how_answers_are_computed_makes_no_other_job(
    tmp_path: Path, changes: dict[str, Any]
) -> None:
    assert identity(make_job(tmp_path, **changes)) == identity(make_job(tmp_path))


def test_another_tokenizer_makes_another_job(tmp_path: Path) -> None:
    job = make_job(tmp_path)
    before = identity(job)
    (tmp_path / "model" / "tokenizer_config.json").write_text("{}")

    assert identity(job) != before
