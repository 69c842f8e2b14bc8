"""What measures a GPU, as far as it goes without one."""

from __future__ import annotations

import dataclasses
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks import gpu, gpu_engine
from benchmarks.gpu import JOBS, ROWS, as_markdown, command, figures_of, table
from benchmarks.gpu_limits import Limits, measure_limits
from benchmarks.gpu_models import SHAPES, config_of, make_checkpoint
from benchmarks.gpu_roofline import ModelCost, least_seconds_of_steps
from benchmarks.workloads import WORKLOADS, make_workload
from furiosa_llm.outputs import StepStats

LIMITS = Limits(copy_bytes_per_second=4e12, matrix_flops_per_second=8e14)
CPU = torch.device("cpu")
TINY = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "vocab_size": 49152,
}
STEP = StepStats(
    replica=0,
    step=0,
    time_s=0.0,
    num_running=0,
    num_waiting=0,
    num_prefill_tokens=0,
    num_decode_tokens=0,
    num_recomputed_tokens=0,
    num_cached_tokens=0,
    num_sampled_tokens=0,
    num_preemptions=0,
    num_used_blocks=0,
    num_free_blocks=0,
    num_steps_in_flight=1,
    schedule_ms=0.0,
    model_ms=0.0,
    sample_ms=0.0,
)


def test_the_shapes_are_of_the_sizes_that_they_are_named_after() -> None:
    costs = {shape: ModelCost.of(dict(values)) for shape, values in SHAPES.items()}

    assert costs["llama-3.2-1b"].layer_weights == pytest.approx(0.97e9, rel=0.01)
    assert costs["llama-3.1-8b"].layer_weights == pytest.approx(6.98e9, rel=0.01)
    assert costs["qwen3-0.6b"].layer_weights == pytest.approx(0.44e9, rel=0.01)
    assert costs["llama-3.1-8b"].kv_numbers * 2 == 128 * 1024  # bytes of a token


def test_a_decode_takes_at_least_the_time_to_read_weights_and_cache() -> None:
    cost = ModelCost.of(dict(SHAPES["llama-3.1-8b"]))

    seconds = cost.least_seconds(LIMITS, num_tokens=256, num_logits=256, num_cached_tokens=256_000)

    weight_bytes = 2 * (cost.layer_weights + 128256 * 4096)
    assert seconds == (weight_bytes + 256_000 * 131072) / 4e12
    rounded = dataclasses.replace(cost, weight_bytes=1)
    assert cost.step_bytes(num_cached_tokens=0) - rounded.step_bytes(num_cached_tokens=0) == (
        cost.layer_weights
    )


def test_a_prefill_takes_at_least_the_time_of_its_products() -> None:
    cost = ModelCost.of(dict(SHAPES["llama-3.1-8b"]))

    seconds = cost.least_seconds(LIMITS, num_tokens=8192, num_logits=8, num_cached_tokens=8192)

    flops = 2 * (cost.layer_weights * 8192 + 128256 * 4096 * 8)
    assert seconds == flops / 8e14
    attention = cost.step_flops(num_tokens=0, num_logits=0, num_pairs=10)
    assert attention == 10 * 32 * 4 * 32 * 128


def test_the_least_time_of_a_run_is_that_of_its_steps() -> None:
    cost = ModelCost.of(dict(SHAPES["llama-3.2-1b"]))
    decode = dataclasses.replace(
        STEP, num_decode_tokens=8, num_sampled_tokens=8, num_used_blocks=100
    )
    prefill = dataclasses.replace(
        STEP, num_prefill_tokens=4096, num_sampled_tokens=4, num_used_blocks=256
    )

    total = least_seconds_of_steps(cost, LIMITS, [decode, prefill], block_size=16)

    assert total == pytest.approx(
        cost.least_seconds(LIMITS, num_tokens=8, num_logits=8, num_cached_tokens=1600)
        + cost.least_seconds(LIMITS, num_tokens=4096, num_logits=4, num_cached_tokens=4096)
    )


def test_the_limits_are_measured_on_any_device() -> None:
    limits = measure_limits(CPU, copy_bytes=1 << 16, matrix_size=32)

    assert limits.copy_bytes_per_second > 0
    assert limits.matrix_flops_per_second > 0


def test_the_workloads_are_those_of_the_table() -> None:
    mixed = list(make_workload("gpu-mixed"))
    nano = list(make_workload("nano-vllm"))

    assert len(mixed) == 1024
    assert {len(row.prompt_token_ids) for row in mixed} <= set(range(128, 513))
    assert {row.max_tokens for row in mixed} <= set(range(64, 257))
    assert len(nano) == 256
    assert {len(row.prompt_token_ids) for row in nano} <= set(range(100, 1025))
    assert {row.max_tokens for row in nano} <= set(range(100, 1025))


def test_without_a_gpu_every_row_says_so_and_nothing_else(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(sys, "argv", ["gpu", "--results", str(tmp_path)])

    gpu.main()

    rows = capsys.readouterr().out.splitlines()[2:]
    assert len(rows) == len(ROWS) + 2
    assert all(row.endswith(" | not measured |") for row in rows)
    (path,) = tmp_path.iterdir()
    content = json.loads(path.read_text())
    assert set(content["table"].values()) == {"not measured"}
    assert content["limits"] is None


def test_a_row_shows_what_its_job_found() -> None:
    found = {
        "small": {
            "requests": {"output_tokens_per_second": 43210.9, "share_of_roofline": 0.5},
            "decode": {"share_of_copy": 0.756},
        }
    }

    lines = dict(table(LIMITS, found))

    assert lines["copy bandwidth"] == "4.00 TB/s"
    assert lines["bfloat16 matrix rate"] == "800 TFLOP/s"
    assert lines["llama-3.2-1b, 1,024 requests, 128-512 in, 64-256 out"] == "43,211 output tokens/s"
    shares = [value for label, value in lines.items() if "llama-3.2-1b, decode" in label]
    assert shares == ["76%"]
    assert list(lines.values()).count("not measured") == len(ROWS) - 3
    assert "| copy bandwidth | 4.00 TB/s |" in as_markdown(lines.items())


def test_every_row_has_a_job_and_every_job_a_row() -> None:
    assert {row.job for row in ROWS} == {job.name for job in JOBS}
    assert {job.workload for job in JOBS} <= WORKLOADS.keys()
    assert {job.shape for job in JOBS} == SHAPES.keys()


def test_the_peer_answers_the_same_requests_on_the_gpu() -> None:
    peer = next(job for job in JOBS if job.peer)

    words = command(peer, models=Path("m"), limits=LIMITS, workload=Path("w.jsonl"))

    assert words[2:5] == ["benchmarks.drivers.transformers", "m/llama-3.2-1b", "w.jsonl"]
    assert words[-2:] == ["--device", "cuda:0"]
    assert figures_of(peer, {"seconds": 2.0, "num_output_tokens": 10}) == {
        "requests": {"seconds": 2.0, "output_tokens_per_second": 5.0}
    }


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    return make_checkpoint("llama-3.2-1b", folder, device=CPU, changes=TINY)


def test_checkpoints_have_random_weights_of_two_bytes(tiny: Path) -> None:
    assert config_of(tiny)["hidden_size"] == 64
    size = sum(file.stat().st_size for file in tiny.glob("*.safetensors"))
    cost = ModelCost.of(config_of(tiny))
    assert size == pytest.approx(2 * (cost.layer_weights + cost.head_weights), rel=0.01)
    assert make_checkpoint("llama-3.2-1b", tiny.parent, device=CPU) == tiny


def test_what_is_measured_on_a_gpu_runs(tiny: Path) -> None:
    settings: Sequence[str] = ("max_num_seqs=4", "paged_attention_num_blocks=40")
    engine = gpu_engine.load(tiny, LIMITS, device="cpu", settings=settings)
    rows = [
        dataclasses.replace(row, max_tokens=3) for row in make_workload("gpu-mixed", num_rows=3)
    ]

    requests: dict[str, Any] = engine.answer(rows)
    trace = engine.trace(rows, first_step=1)
    decode = engine.decode(num_requests=4, position=100)
    prefill = engine.prefill(num_requests=2, length=30)

    assert requests["output_tokens_per_second"] == pytest.approx(9 / requests["seconds"])
    assert 0 < requests["share_of_roofline"] < 1
    assert 0 <= trace["idle_share"] < 1
    assert decode["share_of_copy"] * 4e12 == pytest.approx(
        engine.cost.step_bytes(num_cached_tokens=404) / decode["seconds"]
    )
    assert 0 < prefill["share_of_matrix"] < 1


def test_a_job_that_fails_leaves_the_others_alone(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def words(job: gpu.Job, **_: object) -> list[str]:
        code = "print('{\"requests\": {}}')" if job.name == "nano" else "raise SystemExit('no')"
        return [sys.executable, "-c", code]

    monkeypatch.setattr(gpu, "command", words)
    for shape in SHAPES:
        make_checkpoint(shape, tmp_path, device=CPU, changes=TINY)
    jobs = [job for job in JOBS if job.name in ("nano", "small")]

    outcomes = list(gpu.measure(jobs, tmp_path, LIMITS, end=time.monotonic() + 60))

    assert {job.name: figures for job, figures, _ in outcomes} == {
        "nano": {"requests": {}},
        "small": None,
    }
    assert {job.name for job, _, problem in outcomes if problem} == {"small"}
    too_late = list(gpu.measure(jobs, tmp_path, LIMITS, end=time.monotonic()))
    assert [problem for _, _, problem in too_late] == ["the time was over"] * 2


def test_the_page_has_every_row_of_the_table() -> None:
    page = (Path(__file__).parents[3] / "docs" / "gpu.md").read_text()

    assert [label for label, _ in table(None, {}) if f"| {label} |" not in page] == []
