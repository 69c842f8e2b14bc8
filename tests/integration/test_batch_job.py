"""The whole way: a file of prompts through the embedded model to a Parquet file."""

from __future__ import annotations

import dataclasses
import gzip
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from furiosa_llm.batch.job import BatchJob
from furiosa_llm.batch.run import run_batch_job
from furiosa_llm.batch.summary import Progress
from furiosa_llm.config import EngineArgs
from furiosa_llm.errors import ConfigError, DatasetError, EngineError
from furiosa_llm.execution.launched_step import LaunchedStep
from furiosa_llm.execution.model_runner import ModelRunner
from furiosa_llm.sampling_params import SamplingParams
from furiosa_llm.structured_outputs import StructuredOutputs

SAMPLES = Path(__file__).parents[2] / "samples"
ENGINE = EngineArgs(model=str(SAMPLES / "tiny-llama"), is_offline=True, max_num_seqs=8)
GREEDY = SamplingParams(temperature=0, max_tokens=16)


def make_job(folder: Path, rows: Sequence[object] | Path, **changes: Any) -> BatchJob:
    source = rows if isinstance(rows, Path) else folder / "rows.jsonl"
    if not isinstance(rows, Path):
        lines = (row if isinstance(row, str) else json.dumps(row) for row in rows)
        source.write_text("".join(line + "\n" for line in lines))
    job = BatchJob(
        engine_args=ENGINE,
        sampling_params=GREEDY,
        input=str(source),
        output=folder / "out.parquet",
    )
    return dataclasses.replace(job, **changes)


def read(job: BatchJob) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = pq.read_table(job.output).to_pylist()
    return rows


def test_the_samples_are_answered_right(tmp_path: Path) -> None:
    job = make_job(tmp_path, SAMPLES / "prompts.jsonl", expected_column="expected", num_examples=3)

    summary = run_batch_job(job)

    rows = read(job)
    assert [row["row_index"] for row in rows] == list(range(summary.num_rows))
    assert summary.num_failed == 0
    right = sum(row["text"] == row["expected"] for row in rows)
    assert right == summary.num_right >= 0.98 * summary.num_rows
    assert [example.request_id for example in summary.examples] == [
        row["request_id"] for row in rows[:3]
    ]


def test_a_right_answer_may_be_a_time_that_python_lacks(tmp_path: Path) -> None:
    whens = pa.array([2**60, None], pa.timestamp("us"))
    pq.write_table(pa.table({"prompt": ["a", "b"], "when": whens}), tmp_path / "in.parquet")
    job = make_job(tmp_path, tmp_path / "in.parquet", expected_column="when", num_examples=1)

    summary = run_batch_job(job)

    assert (summary.num_expected, summary.num_right) == (1, 0)
    assert summary.examples[0].expected == f"{2**60} (timestamp[us])"


def test_a_bad_row_is_an_error_row_and_touches_no_other(tmp_path: Path) -> None:
    good = {"prompt": "What is 2 + 3?"}
    bad: list[tuple[object, str]] = [
        ('{"prompt": ', "invalid_row"),
        ({"id": "x"}, "invalid_row"),
        ({"prompt": ""}, "invalid_row"),
        ({"prompt": 7}, "invalid_row"),
        ({"prompt_token_ids": [5, 100_000]}, "invalid_row"),
        ({"prompt": "a", "max_tokens": 0}, "invalid_params"),
        ({"prompt": "a", "sampling_params": {"heat": 1}}, "invalid_params"),
        ({"prompt": "a", "logit_bias": {"100000": 1}}, "invalid_params"),
        ({"prompt": "a", "use_beam_search": True}, "invalid_params"),
        ({"prompt": "a " * 400}, "prompt_too_long"),
    ]
    job = make_job(tmp_path, [good] + [row for line, _ in bad for row in (line, good)])

    summary = run_batch_job(job)

    rows = read(job)
    assert [row["error_code"] for row in rows[1::2]] == [code for _, code in bad]
    assert all(row["finish_reason"] == "error" and row["error"] for row in rows[1::2])
    assert {row["text"] for row in rows[::2]} == {"5"}
    assert summary.error_counts == {"invalid_row": 5, "invalid_params": 4, "prompt_too_long": 1}


def test_rows_ask_for_log_probabilities_and_the_best_of_several(tmp_path: Path) -> None:
    prompt = "What is 2 + 3?"
    rows: list[dict[str, object]] = [
        {"prompt": prompt},
        {"prompt": prompt, "logprobs": 2, "prompt_logprobs": 0},
        {"prompt": prompt, "temperature": 1, "n": 2, "best_of": 4, "logprobs": 0},
        {"prompt": prompt, "logit_bias": {"5": -100}},
    ]
    job = make_job(tmp_path, rows)

    run_batch_job(job)

    plain, told, best, biased = read(job)
    assert (plain["cumulative_logprob"], plain["logprobs"], plain["prompt_logprobs"]) == (None,) * 3
    assert [tops[0]["token_id"] for tops in told["logprobs"]] == told["token_ids"]
    assert {len(tops) for tops in told["logprobs"]} == {2}
    assert told["prompt_logprobs"][0] is None
    assert len(told["prompt_logprobs"]) == told["num_prompt_tokens"]
    assert told["cumulative_logprob"] == pytest.approx(
        sum(tops[0]["logprob"] for tops in told["logprobs"])
    )
    totals = [one["cumulative_logprob"] for one in best["completions"]]
    assert [one["index"] for one in best["completions"]] == [0, 1]
    assert totals == sorted(totals, reverse=True)
    assert best["cumulative_logprob"] == totals[0]
    assert best["logprobs"] == best["completions"][0]["logprobs"]
    assert best["num_output_tokens"] > sum(len(one["token_ids"]) for one in best["completions"])
    assert biased["logprobs"] is None


def test_rows_ask_for_a_form(tmp_path: Path) -> None:
    pytest.importorskip("llguidance")  # some machines with a GPU lack it
    rows: list[dict[str, object]] = [
        {"prompt": "What is 2 + 3?", "structured_outputs": {"choice": ["six", "seven"]}},
        {"prompt": "What is 2 + 3?", "structured_outputs": {"regex": "("}},
        {"prompt": "What is 2 + 3?"},
    ]
    job = make_job(tmp_path, rows)

    run_batch_job(job)

    formed, refused, plain = read(job)
    assert formed["text"] in ("six", "seven")
    assert refused["error_code"] == "invalid_params"
    assert plain["text"] == "5"


def test_a_row_that_never_fits_the_cache_is_an_error_row(tmp_path: Path) -> None:
    engine_args = dataclasses.replace(
        ENGINE, paged_attention_num_blocks=2, paged_attention_block_size=16
    )
    rows = [{"prompt": "What is 2 + 3?"}, {"prompt": "What is 2 + 3?", "max_tokens": 100}]
    job = make_job(tmp_path, rows, engine_args=engine_args)

    run_batch_job(job)

    assert [row["error_code"] for row in read(job)] == [None, "never_fits"]


def test_an_empty_file_gives_an_empty_output_with_the_whole_schema(tmp_path: Path) -> None:
    job = make_job(tmp_path, [])

    summary = run_batch_job(job)

    table = pq.read_table(job.output)
    assert (summary.num_rows, table.num_rows) == (0, 0)
    assert {"row_index", "text", "e2e_s", "replica"} <= set(table.column_names)


@pytest.mark.parametrize("num_replicas", [1, 2])
def test_latencies_are_consistent_and_step_statistics_add_up(
    num_replicas: int, tmp_path: Path
) -> None:
    engine_args = dataclasses.replace(
        ENGINE,
        data_parallel_size=num_replicas,
        is_offline=False,  # offline, requests wait until their answers will fit
        paged_attention_num_blocks=12,
        paged_attention_block_size=16,
        max_num_batched_tokens=32,
    )
    shared = "What is 12 + 30? " * 3
    rows = [{"prompt": shared + f"What is {i} + {i}?"} for i in range(24)]
    params = SamplingParams(temperature=0, max_tokens=40, ignore_eos=True)
    job = make_job(
        tmp_path,
        rows,
        engine_args=engine_args,
        sampling_params=params,
        step_stats=tmp_path / "steps.parquet",
    )

    summary = run_batch_job(job)

    answers = read(job)
    steps = pq.read_table(tmp_path / "steps.parquet").to_pydict()
    for row in answers:
        assert 0 <= row["queue_s"] <= row["ttft_s"] <= row["e2e_s"]
        assert row["block_seconds"] <= row["peak_blocks"] * row["e2e_s"]
        # The last token of an answer is never computed, so it needs no place.
        num_stored_tokens = row["num_prompt_tokens"] + row["num_output_tokens"] - 1
        assert row["peak_blocks"] == -(-num_stored_tokens // 16)

    def total(name: str) -> int:
        return sum(row[name] for row in answers)

    assert summary.num_preemptions > 0
    assert set(steps["replica"]) == {row["replica"] for row in answers} == {*range(num_replicas)}
    assert sum(steps["num_cached_tokens"]) == total("num_cached_tokens") > 0
    assert sum(steps["num_prefill_tokens"]) == total("num_prompt_tokens") - total(
        "num_cached_tokens"
    )
    assert sum(steps["num_sampled_tokens"]) == total("num_output_tokens")
    assert sum(steps["num_recomputed_tokens"]) == total("num_recomputed_tokens")
    assert sum(steps["num_preemptions"]) == total("num_preemptions")
    assert max(steps["num_used_blocks"]) / 12 == summary.peak_kv_cache_usage


def test_a_window_of_one_row_gives_the_same_answers(tmp_path: Path) -> None:
    wide = make_job(tmp_path, SAMPLES / "prompts.jsonl")
    narrow = dataclasses.replace(
        wide,
        engine_args=dataclasses.replace(ENGINE, max_processing_samples=1),
        output=tmp_path / "narrow.parquet",
    )

    run_batch_job(wide)
    run_batch_job(narrow)

    assert [row["text"] for row in read(narrow)] == [row["text"] for row in read(wide)]


def test_sampled_answers_do_not_depend_on_the_rows_beside_them(tmp_path: Path) -> None:
    params = SamplingParams(temperature=1.5, max_tokens=12, n=2)
    rows = [{"prompt": f"What is {i} + 3?"} for i in range(10)]
    together = make_job(tmp_path, rows, sampling_params=params)
    run_batch_job(together)
    alone = make_job(tmp_path, rows[:1], sampling_params=params, output=tmp_path / "alone.parquet")
    run_batch_job(alone)

    assert read(alone)[0]["completions"] == read(together)[0]["completions"]
    assert len(read(alone)[0]["completions"]) == 2


def test_the_manifest_tells_what_the_run_was(tmp_path: Path) -> None:
    job = make_job(tmp_path, [{"prompt": "What is 2 + 3?"}])

    run_batch_job(job)

    manifest = json.loads(pq.read_schema(job.output).metadata[b"furiosa_llm.manifest"])
    assert manifest["model"] == ENGINE.model
    assert manifest["model_hash"].startswith("blake2b")
    assert manifest["options"]["max_num_seqs"] == 8
    assert manifest["sampling_params"]["max_tokens"] == 16
    assert manifest["counts"]["num_rows"] == 1
    assert manifest["started_at"] < manifest["ended_at"]


def test_progress_ends_with_every_row_done(tmp_path: Path) -> None:
    seen: list[Progress] = []
    rows = [{"prompt": "What is 2 + 3?"}] * 30

    run_batch_job(make_job(tmp_path, rows), on_progress=seen.append)

    phases = list(dict.fromkeys(progress.phase for progress in seen))
    assert phases == ["loading", "answering", "writing", "done"]
    counts = [progress.num_done for progress in seen]
    assert counts == sorted(counts)
    assert (seen[-1].num_done, seen[-1].num_rows) == (30, 30)


def test_an_input_that_ends_in_the_middle_ends_the_run_and_keeps_no_output(tmp_path: Path) -> None:
    broken = tmp_path / "rows.jsonl.gz"
    packed = gzip.compress(b'{"prompt": "What is 2 + 3?"}\n' * 2000, compresslevel=0)
    broken.write_bytes(packed[:-5000])

    job = make_job(tmp_path, broken)
    with pytest.raises(DatasetError, match=r"rows\.jsonl\.gz"):
        run_batch_job(job)

    assert not Path(job.output).exists()


def test_a_step_that_breaks_ends_the_run_with_its_cause(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def break_down(*_: object) -> LaunchedStep:
        raise RuntimeError("out of memory")

    monkeypatch.setattr(ModelRunner, "launch", break_down)

    with pytest.raises(EngineError, match="step 0 failed: out of memory"):
        run_batch_job(make_job(tmp_path, [{"prompt": "What is 2 + 3?"}]))


def test_a_form_for_every_row_that_does_not_compile_is_refused_before_any_row_is_read(
    tmp_path: Path,
) -> None:
    pytest.importorskip("llguidance")
    params = SamplingParams(structured_outputs=StructuredOutputs(regex="("))
    job = make_job(tmp_path, [{"prompt": "a"}], sampling_params=params)

    with pytest.raises(ConfigError, match="cannot be compiled"):
        run_batch_job(job)

    assert not Path(job.output).exists()
