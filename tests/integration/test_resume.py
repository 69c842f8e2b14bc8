"""A batch that stops and goes on, with a real model."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from huggingface_hub import constants

from furiosa_llm.batch.job import BatchJob
from furiosa_llm.batch.run import run_batch_job
from furiosa_llm.batch.summary import Progress
from furiosa_llm.errors import ConfigError
from furiosa_llm.sampling_params import SamplingParams
from tests.crash.harness import same_answers
from tests.hub_cache import add_to_cache
from tests.integration.test_batch_job import ENGINE, SAMPLES, make_job

DRAWN = SamplingParams(temperature=0.8, max_tokens=12)


@pytest.fixture
def job(tmp_path: Path) -> BatchJob:
    path = SAMPLES / "prompts.jsonl"
    return make_job(tmp_path, path, sampling_params=DRAWN, rows_per_part=5, resume=True)


def stop_when(holds: Callable[[Progress], bool]) -> Callable[[Progress], None]:
    def stop(progress: Progress) -> None:
        if holds(progress):
            raise KeyboardInterrupt

    return stop


def stopped(job: BatchJob, holds: Callable[[Progress], bool]) -> None:
    with pytest.raises(KeyboardInterrupt):
        run_batch_job(job, on_progress=stop_when(holds))


def unbroken(job: BatchJob) -> pa.Table:
    whole = dataclasses.replace(job, output=Path(job.output).with_name("unbroken.parquet"))
    run_batch_job(whole)
    return pq.read_table(whole.output)


def test_a_batch_goes_on_and_ends_as_if_it_had_not_stopped(job: BatchJob) -> None:
    stopped(job, lambda progress: progress.num_done >= 12)
    stopped(job, lambda progress: progress.phase == "writing")

    summary = run_batch_job(job)

    assert same_answers(pq.read_table(job.output), unbroken(job))
    assert summary.num_resumed == summary.num_rows  # only the merge was left
    manifest = json.loads(pq.read_schema(job.output).metadata[b"furiosa_llm.manifest"])
    table = pq.read_table(job.output)
    assert manifest["counts"]["num_output_tokens"] == sum(table["num_output_tokens"].to_pylist())


def test_options_that_do_not_change_answers_may_change(job: BatchJob) -> None:
    stopped(job, lambda progress: progress.num_done >= 12)
    changed = dataclasses.replace(
        job,
        engine_args=dataclasses.replace(ENGINE, max_num_seqs=4, is_offline=False),
        rows_per_part=100,
        num_examples=2,
    )

    assert run_batch_job(changed).num_resumed >= 12

    assert same_answers(pq.read_table(job.output), unbroken(job))


def test_the_same_job_in_other_words_is_the_same_job(job: BatchJob) -> None:
    args = dataclasses.replace(ENGINE, devices=None, dtype="auto", data_parallel_size=1)
    params = dataclasses.replace(job.sampling_params, top_k=-1)
    job = dataclasses.replace(job, engine_args=args, sampling_params=params)
    stopped(job, lambda progress: progress.num_done >= 12)
    same = dataclasses.replace(
        job,
        engine_args=dataclasses.replace(args, devices="npu:0", dtype="float32"),
        sampling_params=dataclasses.replace(params, top_k=0),
        columns=dataclasses.replace(job.columns, params_column="sampling_params"),
    )

    assert run_batch_job(same).num_resumed >= 12


def test_a_length_that_fits_the_context_is_told_as_the_length_that_it_is(job: BatchJob) -> None:
    params = SamplingParams(temperature=0.8, max_tokens=12, fits_context=True)
    job = dataclasses.replace(job, sampling_params=params)
    stopped(job, lambda progress: progress.num_done >= 12)
    given = dataclasses.replace(params, fits_context=False)

    with pytest.raises(ConfigError) as error:
        run_batch_job(dataclasses.replace(job, sampling_params=given))

    was = 'max_tokens was "12, or what a prompt leaves of the context", is now 12'
    assert was in str(error.value)
    assert "fits_context" not in str(error.value)


@pytest.mark.parametrize("name", ["config.json", "modeling_own.py"])
def test_a_model_that_changed_is_refused(job: BatchJob, tmp_path: Path, name: str) -> None:
    model = tmp_path / "model"
    shutil.copytree(ENGINE.model, model)
    job = dataclasses.replace(job, engine_args=dataclasses.replace(ENGINE, model=str(model)))
    stopped(job, lambda progress: progress.num_done >= 12)
    with (model / name).open("a") as file:
        file.write("\n")

    with pytest.raises(ConfigError, match="model was"):
        run_batch_job(job)


def test_a_change_that_matters_is_refused_before_the_model_is_loaded(
    job: BatchJob, tmp_path: Path
) -> None:
    stopped(job, lambda progress: progress.num_done >= 12)
    changed = tmp_path / "changed.jsonl"
    changed.write_text((SAMPLES / "prompts.jsonl").read_text() + '{"prompt": "a"}\n')
    seen: list[str] = []

    for other, difference in (
        (dataclasses.replace(job, input=str(changed)), "input was"),
        (dataclasses.replace(job, engine_args=dataclasses.replace(ENGINE, seed=3)), "seed was 0"),
        (
            dataclasses.replace(job, sampling_params=SamplingParams(temperature=0.9)),
            "temperature was 0.8, is now 0.9; max_tokens was 12, is now 16",
        ),
    ):
        with pytest.raises(ConfigError, match=difference):
            run_batch_job(other, on_progress=lambda progress: seen.append(progress.phase))

    assert seen == []


def test_a_gpu_that_came_or_went_is_refused(job: BatchJob, monkeypatch: pytest.MonkeyPatch) -> None:
    args = dataclasses.replace(ENGINE, devices=None, data_parallel_size=1)
    job = dataclasses.replace(job, engine_args=args)
    stopped(job, lambda progress: progress.num_done >= 12)
    monkeypatch.setattr("furiosa_llm.batch.manifest.count_gpus", lambda: 1)

    with pytest.raises(ConfigError) as error:
        run_batch_job(job)

    assert 'computed_on was "cpu", is now "cuda"' in str(error.value)
    assert 'computed_in was "float32", is now "auto"' in str(error.value)


def test_an_input_that_moved_is_the_same_input(job: BatchJob, tmp_path: Path) -> None:
    stopped(job, lambda progress: progress.num_done >= 12)
    copy = tmp_path / "copy.jsonl"
    copy.write_bytes((SAMPLES / "prompts.jsonl").read_bytes())

    assert run_batch_job(dataclasses.replace(job, input=str(copy))).num_resumed >= 12


def test_a_model_of_the_hub_is_known_by_its_weights(
    job: BatchJob, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub, source = tmp_path / "hub", Path(ENGINE.model)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(hub))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    add_to_cache(hub, "someone/tiny", source, revision="main", commit="a" * 40)
    stopped(job, lambda progress: progress.num_done >= 12)
    args = dataclasses.replace(ENGINE, model="someone/tiny")

    changed = shutil.copytree(source, tmp_path / "changed")
    content = json.loads((changed / "config.json").read_text())
    (changed / "config.json").write_text(json.dumps({**content, "rms_norm_eps": 0.5}))
    add_to_cache(hub, "someone/tiny", changed, revision="v2", commit="b" * 40)

    with pytest.raises(ConfigError, match=r"of another job: model was .*, is now "):
        run_batch_job(
            dataclasses.replace(job, engine_args=dataclasses.replace(args, revision="v2"))
        )
    assert run_batch_job(dataclasses.replace(job, engine_args=args)).num_resumed >= 12


def test_a_finished_batch_is_not_run_again(job: BatchJob) -> None:
    first = run_batch_job(job)
    before = Path(job.output).read_bytes()

    summary = run_batch_job(job, on_progress=stop_when(lambda _: True))

    assert (summary.was_complete, summary.num_rows) == (True, first.num_rows)
    assert Path(job.output).read_bytes() == before


def test_failed_rows_are_tried_again_with_more_room(tmp_path: Path) -> None:
    rows = [{"prompt": "What is 2 + 3?"}, {"prompt": "What is 2 + 3?", "max_tokens": 100}]
    tight = dataclasses.replace(ENGINE, paged_attention_num_blocks=2, paged_attention_block_size=16)
    job = make_job(tmp_path, rows, engine_args=tight, resume=True)
    assert run_batch_job(job).num_failed == 1

    roomy = dataclasses.replace(job, engine_args=ENGINE)
    assert run_batch_job(roomy).was_complete
    summary = run_batch_job(dataclasses.replace(roomy, retry_failed=True))

    assert (summary.num_rows, summary.num_failed, summary.num_resumed) == (2, 0, 1)
    assert same_answers(pq.read_table(job.output), unbroken(roomy))


@pytest.mark.parametrize("is_retried", [False, True])
def test_the_failed_rows_are_those_of_all_runs_and_can_be_an_input(
    tmp_path: Path, is_retried: bool
) -> None:
    bad: list[object] = [{"prompt": "a", "max_tokens": 0}, '{"prompt": ', {"question": "none"}]
    rows = [bad[0], *[{"prompt": "What is 2 + 3?"}] * 170, bad[1], bad[2]]
    failed = tmp_path / "failed.jsonl"
    tight = dataclasses.replace(ENGINE, max_processing_samples=8)  # the last rows come late
    job = make_job(
        tmp_path, rows, engine_args=tight, rows_per_part=5, resume=True, failed_rows=failed
    )
    stopped(job, lambda progress: progress.num_done >= 30)
    assert len(failed.read_text().splitlines()) == 1

    summary = run_batch_job(dataclasses.replace(job, retry_failed=is_retried))

    lines = failed.read_text().splitlines()
    assert len(lines) == summary.num_failed == 3
    assert {json.dumps(row, separators=(",", ":")) for row in (bad[0], bad[2])} < set(lines)
    again = dataclasses.replace(
        job, input=str(failed), output=tmp_path / "again.parquet", failed_rows=None
    )
    assert run_batch_job(again).num_failed == 3


def test_standard_input_cannot_be_resumed(job: BatchJob) -> None:
    with pytest.raises(ConfigError, match="--resume needs an input that can be read again"):
        run_batch_job(dataclasses.replace(job, input="-"))
