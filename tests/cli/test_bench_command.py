from __future__ import annotations

import io
import json
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from furiosa_llm.benchmark.figures import Repetition, summarise
from furiosa_llm.benchmark.runner import BenchmarkResult, BenchmarkSpec
from furiosa_llm.benchmark.workload import FileWorkload, RandomWorkload
from furiosa_llm.config import EngineArgs
from furiosa_llm.sampling_params import SamplingParams
from furiosa_llm_cli.bench_report import plain_result, print_result
from tests.cli.cli_factories import invoke

SAMPLES = Path(__file__).parents[2] / "samples"
MODEL = str(SAMPLES / "tiny-llama")
SEE_BENCH = " (see 'furiosa-llm bench --help')\n"


def make_result() -> BenchmarkResult:
    repetitions = [
        Repetition(
            seconds=seconds,
            num_requests=4,
            num_refused=1,
            num_prompt_tokens=400,
            num_cached_tokens=100,
            num_output_tokens=4,
            num_preemptions=1,
            peak_kv_cache_usage=0.25,
            latencies={
                "queue_s": (0.0, 0.001),
                "ttft_s": (0.5, 1.5),
                "tpot_s": (),
                "e2e_s": (0.5, 1.5),
            },
        )
        for seconds in (1.0, 2.0)
    ]
    return BenchmarkResult(
        spec=BenchmarkSpec(
            engine_args=EngineArgs(model="m"),
            sampling_params=SamplingParams(),
            workload=RandomWorkload(),
        ),
        started_at="2026-01-01T00:00:00+00:00",
        startup_seconds=0.5,
        placement="2 replicas, 1 thread each, on cpu",
        num_blocks=1000,
        block_size=32,
        num_unreadable=2,
        repetitions=tuple(repetitions),
        summary=summarise(repetitions),
    )


def test_a_plain_report_has_every_figure() -> None:
    assert plain_result(make_result(), workload="4 prompts", import_seconds=4.0) == (
        """\
model            m
workload         4 prompts; 2 repetitions
engine           2 replicas, 1 thread each, on cpu
start-up         4.5 s, not counted (libraries 4.0 s, model 0.5 s)
requests/s       3.0 ± 1.4
prompt tokens/s  300 ± 141
output tokens/s  3.0 ± 1.4
total tokens/s   303 ± 143
KV cache         25 % of 1,000 blocks of 32 tokens at most, 2 preemptions
prefix cache     25 % of the prompt tokens came from it
left out         3 prompts that cannot be answered

milliseconds                       P50       P90       P99
waiting for the first step        0.50      1.00      1.00
to the first token            1,000.00  1,500.00  1,500.00
per further token                    -         -         -
to the end of the answer      1,000.00  1,500.00  1,500.00"""
    )


def test_a_report_tells_of_answers_that_failed() -> None:
    result = make_result()
    summary = replace(result.summary, num_failed=2, first_error="the scores are\nno numbers")

    report = plain_result(replace(result, summary=summary), workload="w", import_seconds=4.0)

    assert (
        "failed           2 answers, in no rate; for example: the scores are no numbers" in report
    )


def test_a_terminal_gets_tables_that_fit() -> None:
    for width in (40, 80, 120):
        console = Console(file=io.StringIO(), force_terminal=True, width=width, color_system=None)

        print_result(console, make_result(), workload="4 prompts", import_seconds=4.0)

        assert isinstance(console.file, io.StringIO)
        output = console.file.getvalue()
        assert "1,500.00" in output
        assert max(map(len, output.splitlines())) <= width


def test_bench_measures_random_prompts_and_writes_everything_as_json(tmp_path: Path) -> None:
    path = tmp_path / "result.json"

    outcome = invoke(
        *("bench", "-m", MODEL, "--num-prompts", "4", "--input-len", "4:8", "--output-len", "3"),
        *("--repetitions", "2", "--json", str(path)),
    )

    content = json.loads(path.read_text(encoding="utf-8"))
    assert outcome.exit_code == 0
    assert "random prompts of 4 to 8 tokens, answers of 3; 2 repetitions" in outcome.stdout
    assert outcome.stderr.splitlines()[:3] == [
        "loading the model",
        "running 1 replica, on cpu",
        "warm-up 1 of 1",
    ]
    assert content["workload"] == {
        "kind": "RandomWorkload",
        "num_prompts": 4,
        "input_len": [4, 8],
        "output_len": [3, 3],
    }
    assert [run["num_output_tokens"] for run in content["repetitions"]] == [12, 12]
    assert content["engine_args"]["is_offline"] is True
    assert content["machine"]["cores"] >= 1
    assert content["versions"]["torch"]
    assert content["summary"]["rates"]["output_tokens"]["mean"] > 0
    assert set(content["summary"]["latencies"]["e2e_s"]) == {"p50", "p90", "p99"}


def test_bench_measures_the_rows_of_a_file(tmp_path: Path) -> None:
    path = tmp_path / "result.json"

    outcome = invoke(
        *("bench", "-m", MODEL, "-i", str(SAMPLES / "prompts.jsonl"), "--num-prompts", "5"),
        *("--max-tokens", "4", "--repetitions", "1", "--warmup", "0", "--json", str(path)),
        *("--quiet", "--logit-bias", "5=-1"),
    )

    content = json.loads(path.read_text(encoding="utf-8"))
    assert (outcome.exit_code, outcome.stderr) == (0, "")
    assert "workload         5 prompts of " in outcome.stdout
    assert content["workload"]["kind"] == FileWorkload.__name__
    assert content["sampling_params"]["max_tokens"] == 4
    assert content["sampling_params"]["logit_bias"] == {"5": -1.0}


def test_bench_says_at_once_that_a_file_cannot_be_written(tmp_path: Path) -> None:
    outcome = invoke("bench", "-m", MODEL, "--json", str(tmp_path / "no" / "where.json"))

    assert (outcome.exit_code, outcome.stdout) == (4, "")
    message = f"Error: {tmp_path}/no is not an existing folder; create it or choose another\n"
    assert outcome.stderr == message


def test_bench_never_writes_over_its_input(tmp_path: Path) -> None:
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"prompt": "a"}\n')

    outcome = invoke("bench", "-m", MODEL, "-i", str(rows), "--json", str(rows))

    assert outcome.exit_code == 2
    assert outcome.stderr == f"Error: --json {rows} is an input, too; choose another file\n"
    assert rows.read_text() == '{"prompt": "a"}\n'


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--input-len", "8:4"], "'8:4' must hold lengths of at least 1, the lower first"),
        (["--output-len", "long"], "'long' is not a length; write 128, or 64:256"),
        (["--repetitions", "0"], "0 is not in the range x>=1."),
        (
            ["--max-tokens", "5"],
            "--max-tokens is for the rows of --input; random prompts have --input-len and "
            "--output-len",
        ),
        (
            ["-i", "x.jsonl", "--output-len", "5"],
            "--output-len is for random prompts; leave it out or leave --input out",
        ),
    ],
)
def test_a_workload_that_makes_no_sense_is_one_clear_line(args: list[str], message: str) -> None:
    outcome = invoke("bench", "-m", MODEL, *args)

    assert (outcome.exit_code, outcome.stdout) == (2, "")
    assert outcome.stderr.startswith("Error: ")
    assert outcome.stderr.endswith(message + SEE_BENCH)
    assert outcome.stderr.count("\n") == 1
