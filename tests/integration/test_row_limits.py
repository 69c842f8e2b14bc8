"""Limits of a batch: time of a row, rows that may fail, and the file of those that failed."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from furiosa_llm.batch.job import BatchJob
from furiosa_llm.batch.run import run_batch_job
from furiosa_llm.batch.summary import FirstError
from furiosa_llm.config import EngineArgs
from furiosa_llm.dataset.columns import ColumnMapping
from furiosa_llm.error_limit import ErrorLimit
from furiosa_llm.errors import (
    ConfigError,
    DatasetError,
    RequestTimeoutError,
    TooManyErrorsError,
)
from furiosa_llm.llm_engine import LLMEngine
from furiosa_llm.outputs import RequestOutput
from furiosa_llm.sampling_params import SamplingParams

SAMPLES = Path(__file__).parents[2] / "samples"
ENGINE = EngineArgs(
    model=str(SAMPLES / "tiny-llama"), is_offline=True, max_num_seqs=8, data_parallel_size=1
)
GREEDY = SamplingParams(temperature=0, max_tokens=16)
LONG = SamplingParams(temperature=0, max_tokens=60, ignore_eos=True)
GOOD = {"prompt": "What is 2 + 3?", "topic": "sums"}
NOW = 1e-9  # over once the first step is


def make_job(folder: Path, rows: Sequence[object], **changes: Any) -> BatchJob:
    source = folder / "rows.jsonl"
    lines = (row if isinstance(row, str) else json.dumps(row) for row in rows)
    source.write_text("".join(line + "\n" for line in lines))
    job = BatchJob(
        engine_args=ENGINE,
        sampling_params=GREEDY,
        input=str(source),
        output=folder / "out.parquet",
    )
    return dataclasses.replace(job, **changes)


def read(path: str | Path) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = pq.read_table(path).to_pylist()
    return rows


@pytest.mark.parametrize("num_replicas", [1, 2])
def test_a_row_that_takes_too_long_is_cancelled_with_what_it_has(
    num_replicas: int, tmp_path: Path
) -> None:
    engine_args = dataclasses.replace(ENGINE, data_parallel_size=num_replicas)
    job = make_job(tmp_path, [GOOD] * 12, engine_args=engine_args, sampling_params=LONG)
    run_batch_job(job)
    whole = read(job.output)
    limited = dataclasses.replace(job, row_timeout_seconds=NOW, output=tmp_path / "limited.parquet")

    summary = run_batch_job(limited)

    assert summary.error_counts == {"timeout": 12}
    for row, unlimited in zip(read(limited.output), whole, strict=True):
        assert (row["finish_reason"], row["error_code"]) == ("cancelled", "timeout")
        assert row["error"] == "not answered within 1e-09 s"
        assert 1 <= len(row["token_ids"]) < 60
        assert row["token_ids"] == unlimited["token_ids"][: row["num_output_tokens"]]
        assert row["text"]
        assert unlimited["text"].startswith(row["text"])


@pytest.mark.parametrize("num_steps_in_flight", [1, 2])
def test_a_limit_is_that_of_its_row_and_of_all_its_answers(num_steps_in_flight: int) -> None:
    args = dataclasses.replace(ENGINE, npu_queue_limit=num_steps_in_flight, max_num_seqs=2)
    engine = LLMEngine.from_engine_args(args)
    several = dataclasses.replace(LONG, temperature=1.0, n=4)
    engine.add_request("short", "What is 2 + 3?", several, timeout_seconds=NOW)
    engine.add_request("long", "What is 2 + 3?", LONG, timeout_seconds=1e6)
    engine.add_request("free", "What is 2 + 3?", LONG)
    last: dict[str, RequestOutput] = {}

    while engine.has_unfinished_requests():
        last.update((output.request_id, output) for output in engine.step())

    assert isinstance(last["short"].error, RequestTimeoutError)
    assert [answer.finish_reason for answer in last["short"].outputs] == ["cancelled"] * 4
    assert last["short"].metrics.e2e_s is not None
    for name in ("long", "free"):
        assert last[name].error is None
        assert len(last[name].outputs[0].token_ids) == 60


def test_failed_rows_are_written_as_they_were_and_can_be_an_input(tmp_path: Path) -> None:
    bad = [
        {"id": "a", "prompt": "a", "max_tokens": 0, "topic": {"deep": [1, None]}},
        {"prompt": "a " * 400},
        {"question": "wrong column", "ü": 2**70},
    ]
    rows = [GOOD, bad[0], GOOD, bad[1], bad[2], GOOD, '{"prompt": ']
    job = make_job(tmp_path, rows, failed_rows=tmp_path / "failed.jsonl")

    summary = run_batch_job(job)

    lines = (tmp_path / "failed.jsonl").read_text(encoding="utf-8").splitlines()
    failed = [json.loads(line) for line in lines]
    assert sorted(map(str, failed[:-1])) == sorted(map(str, bad))
    assert failed[-1]["row_index"] == 6
    assert "rows.jsonl:7: not valid JSON" in failed[-1]["error"]
    assert summary.first_errors["invalid_params"] == FirstError(
        1, "max_tokens must be at least 1, got 0"
    )
    assert summary.first_errors["invalid_row"].row_index == 4
    assert f"the failed rows are in {job.failed_rows}, which can be an --input" in summary.notes
    again = dataclasses.replace(job, input=str(job.failed_rows), output=tmp_path / "again.parquet")
    with pytest.raises(ConfigError, match=r"--failed-rows .* is an input, too"):
        run_batch_job(again)
    assert run_batch_job(dataclasses.replace(again, failed_rows=None)).num_failed == 4


def test_rows_that_fail_in_the_engine_are_among_the_failed_ones(tmp_path: Path) -> None:
    job = make_job(
        tmp_path,
        [GOOD, {"prompt": ""}] * 2,
        failed_rows=tmp_path / "failed.jsonl",
        sampling_params=LONG,
        row_timeout_seconds=NOW,
    )

    run_batch_job(job)

    lines = (tmp_path / "failed.jsonl").read_text().splitlines()
    assert sorted(lines) == sorted(
        json.dumps(row, separators=(",", ":")) for row in [GOOD, {"prompt": ""}] * 2
    )


def test_a_run_in_which_nothing_fails_leaves_an_empty_file_of_failed_rows(tmp_path: Path) -> None:
    job = make_job(tmp_path, [GOOD] * 3, failed_rows=tmp_path / "failed.jsonl")

    summary = run_batch_job(job)

    assert (tmp_path / "failed.jsonl").read_bytes() == b""
    assert summary.notes == ()


@pytest.mark.parametrize("limit", ["0", "2", "60%"])
def test_a_batch_stops_early_when_more_rows_have_failed_than_may(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, limit: str
) -> None:
    rows = [{"prompt": "", "max_tokens": 0}] * 600
    rows[0] = {"prompt": "a " * 400}  # it fails, too
    job = make_job(
        tmp_path,
        [GOOD, *rows],
        max_errors=ErrorLimit.parse(limit),
        failed_rows=tmp_path / "failed.jsonl",
    )

    with pytest.raises(TooManyErrorsError, match=r"^stopped early: ") as stopped:
        run_batch_job(job)

    assert f"rows failed, more than --max-errors {limit}; the output is not complete" in str(
        stopped.value
    )
    num_failed = int(str(stopped.value).split()[2])
    assert len((tmp_path / "failed.jsonl").read_text().splitlines()) == num_failed < 110
    assert not Path(job.output).exists()
    parts = list(tmp_path.glob("out.parquet.parts/*.parquet"))
    num_saved = sum(pq.read_metadata(part).num_rows for part in parts)
    advice = "--resume with a higher --max-errors, or with --retry-failed, goes on"
    saved = "1 finished row is" if num_saved == 1 else f"{num_saved} finished rows are"
    assert caplog.messages[-1].endswith(f"{saved} in {job.output}.parts; " + advice)
    status = json.loads((tmp_path / "out.parquet.status.json").read_text())
    assert (status["state"], status["rows_failed"]) == ("failed", num_failed)
    assert status["rows_saved"] == status["rows_done"] == num_saved > 0


@pytest.mark.parametrize("limit", [None, "4", "50%"])
def test_a_batch_that_keeps_within_its_limit_is_complete(tmp_path: Path, limit: str | None) -> None:
    max_errors = None if limit is None else ErrorLimit.parse(limit)
    job = make_job(tmp_path, [GOOD, {"prompt": ""}] * 4, max_errors=max_errors)

    summary = run_batch_job(job)

    assert (summary.num_failed, len(read(job.output))) == (4, 8)


def test_long_rows_wait_in_the_input_and_not_in_the_engine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("furiosa_llm.batch.rows_in_flight.MAX_BYTES_IN_FLIGHT", 5000)
    job = make_job(tmp_path, [{**GOOD, "max_tokens": 2, "note": "x" * 1000}] * 300)
    held: list[int] = []

    summary = run_batch_job(
        job, on_progress=lambda now: held.append(now.num_running + now.num_waiting)
    )

    assert (summary.num_rows, summary.num_failed) == (300, 0)
    assert 0 < max(held) <= 64 + 5  # rows are handed over 64 at a time


def test_a_default_length_refuses_no_row_and_a_given_one_does(tmp_path: Path) -> None:
    long = {"prompt": "a " * 200}
    job = make_job(tmp_path, [long, {**long, "max_tokens": 256}])
    default = dataclasses.replace(GREEDY, max_tokens=256, fits_context=True, ignore_eos=True)

    summary = run_batch_job(dataclasses.replace(job, sampling_params=default))

    first, second = read(job.output)
    assert summary.error_counts == {"prompt_too_long": 1}
    assert (first["error"], first["finish_reason"]) == (None, "length")
    assert first["num_prompt_tokens"] + first["num_output_tokens"] == 512
    assert first["num_output_tokens"] < 256
    assert second["error_code"] == "prompt_too_long"


def test_a_given_length_that_leaves_no_room_for_a_prompt_is_refused(tmp_path: Path) -> None:
    job = make_job(tmp_path, [GOOD])
    params = dataclasses.replace(GREEDY, max_tokens=512)

    with pytest.raises(ConfigError, match=r"--max-tokens 512 leaves no room .* of 512 tokens"):
        run_batch_job(dataclasses.replace(job, sampling_params=params))
    default = dataclasses.replace(params, fits_context=True)
    assert run_batch_job(dataclasses.replace(job, sampling_params=default)).num_failed == 0


def test_a_first_run_that_may_be_resumed_empties_no_file_that_is_there(tmp_path: Path) -> None:
    notes = tmp_path / "notes.jsonl"
    notes.write_text("mine\n")
    job = make_job(tmp_path, [GOOD, {"prompt": ""}], failed_rows=notes, resume=True)

    with pytest.raises(DatasetError, match=r"notes\.jsonl exists already"):
        run_batch_job(job)

    assert notes.read_text() == "mine\n"
    notes.unlink()
    run_batch_job(job)
    run_batch_job(dataclasses.replace(job, retry_failed=True))
    assert notes.read_text() == '{"prompt":""}\n'


@pytest.mark.parametrize("is_folder", [False, True])
def test_the_failed_rows_of_a_complete_output_are_written_too(
    tmp_path: Path, is_folder: bool
) -> None:
    output = f"{tmp_path}/out/" if is_folder else tmp_path / "out.parquet"
    job = make_job(tmp_path, [GOOD, {"prompt": ""}, GOOD, "["], output=output, resume=True)
    run_batch_job(job)

    summary = run_batch_job(dataclasses.replace(job, failed_rows=tmp_path / "failed.jsonl"))

    assert (summary.was_complete, summary.num_failed) == (True, 2)
    first, second = (tmp_path / "failed.jsonl").read_text().splitlines()
    assert first == '{"prompt":""}'
    assert json.loads(second)["row_index"] == 3


def test_a_column_of_parameters_that_no_row_has_is_told(tmp_path: Path) -> None:
    job = make_job(tmp_path, [{**GOOD, "params": {"top_k": 5}}, GOOD], overwrite=True)
    notes = [
        run_batch_job(dataclasses.replace(job, columns=ColumnMapping(params_column=name))).notes
        for name in (None, "params", "nope")
    ]

    assert notes == [(), (), ("no row has the column of parameters 'nope'",)]
