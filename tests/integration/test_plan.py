"""What a plan says of a batch is what a run of it does."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from furiosa_llm.batch.job import BatchJob
from furiosa_llm.batch.plan import BatchPlan, plan_batch
from furiosa_llm.batch.row_census import PlanSpec
from furiosa_llm.batch.run import run_batch_job
from furiosa_llm.config import EngineArgs
from furiosa_llm.errors import ConfigError, DatasetError
from furiosa_llm.sampling_params import SamplingParams

TINY = str(Path(__file__).parents[2] / "samples" / "tiny-llama")
ARGS = EngineArgs(model=TINY, data_parallel_size=1, devices="cpu", is_offline=True)
PARAMS = SamplingParams(temperature=0, max_tokens=8)


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    """Rows of which some cannot be answered, and some begin alike."""
    path = tmp_path / "in.jsonl"
    lines: list[dict[str, object]] = [
        {"prompt_token_ids": [5] * 70 + [number]} for number in range(20)
    ]
    lines[3] = {"nothing": 1}
    lines[5] = {"prompt_token_ids": [5] * 600}
    lines[7] = {"prompt": "Add 1 and 2.", "temperature": -1}
    lines[9] = {"prompt": "Add 1 and 2.", "max_tokens": 3}
    path.write_text("".join(json.dumps(line) + "\n" for line in lines) + "no JSON\n")
    return path


def plan(rows: Path, **changes: Any) -> BatchPlan:
    values: dict[str, Any] = {"engine_args": ARGS, "sampling_params": PARAMS, "input": str(rows)}
    return plan_batch(PlanSpec(**values | changes), report=lambda _: None)


def test_it_tells_what_a_run_finds(rows: Path, tmp_path: Path) -> None:
    planned = plan(rows)
    out = tmp_path / "out.parquet"
    summary = run_batch_job(
        BatchJob(engine_args=ARGS, sampling_params=PARAMS, input=str(rows), output=out)
    )

    assert planned.num_rows == summary.num_rows == 21
    assert planned.error_counts == summary.error_counts
    assert planned.first_errors == summary.first_errors
    answered = [row for row in pq.read_table(out).to_pylist() if row["error_code"] is None]
    assert planned.num_prompt_tokens == sum(row["num_prompt_tokens"] for row in answered)
    assert planned.num_shared_tokens == summary.num_cached_tokens > 0
    assert planned.limits.cache_config.num_blocks == summary.num_blocks
    assert planned.max_blocks == max(row["peak_blocks"] for row in answered)
    assert planned.num_ready == 17
    assert planned.max_output_tokens == 16 * 8 + 3
    assert planned.sample is None
    assert planned.estimated_seconds is None


def test_a_sample_is_answered_and_scaled_to_all_rows(rows: Path) -> None:
    planned = plan(rows, num_samples=4)

    sample = planned.sample
    assert sample is not None
    assert (sample.num_rows, sample.num_failed) == (4, 0)
    assert 0 < sample.num_output_tokens <= 4 * 8
    assert planned.estimated_seconds == pytest.approx(sample.seconds * 17 / 4)


def test_no_more_rows_are_answered_than_there_are(rows: Path) -> None:
    planned = plan(rows, num_samples=100)

    assert planned.sample is not None
    assert planned.sample.num_rows == 17


def test_lengths_are_told_by_the_share_of_prompts(rows: Path) -> None:
    planned = plan(rows)

    assert [planned.prompt_length_at(share) for share in (0.01, 0.5, 1.0)] == [8, 71, 71]


def test_an_empty_input_needs_nothing(tmp_path: Path) -> None:
    empty = tmp_path / "empty.jsonl"
    empty.touch()

    planned = plan(empty, num_samples=3)

    assert (planned.num_rows, planned.num_at_once, planned.sample) == (0, 0, None)
    assert planned.prompt_length_at(0.5) == 0


def test_what_would_fail_every_row_is_refused(rows: Path) -> None:
    params = SamplingParams(max_tokens=8, logit_bias={10**6: 1.0})

    with pytest.raises(ConfigError, match="1000000"):
        plan(rows, sampling_params=params)


def test_an_output_that_cannot_be_is_refused(rows: Path, tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="is not an existing folder"):
        plan(rows, output=str(tmp_path / "absent" / "out.parquet"))
    with pytest.raises(ConfigError, match="is an input, too"):
        plan(rows, output=str(rows))
    assert not list(tmp_path.glob("*.parts"))


def test_an_answer_that_leaves_no_room_for_a_prompt_is_refused(rows: Path) -> None:
    with pytest.raises(ConfigError, match="leaves no room for a prompt"):
        plan(rows, sampling_params=SamplingParams(max_tokens=512))
