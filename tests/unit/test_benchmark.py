from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from statistics import stdev
from typing import Any

import pytest

from furiosa_llm.benchmark.figures import Percentiles, Repetition, Spread, percentile, summarise
from furiosa_llm.benchmark.runner import BenchmarkResult, BenchmarkSpec, run_benchmark
from furiosa_llm.benchmark.workload import FileWorkload, RandomWorkload, Workload
from furiosa_llm.config import EngineArgs
from furiosa_llm.errors import ConfigError, PromptFailedError
from furiosa_llm.llm_engine import LLMEngine
from furiosa_llm.outputs import RequestOutput
from furiosa_llm.sampling_params import SamplingParams

MODEL = str(Path(__file__).parents[2] / "samples" / "tiny-llama")


def make_repetition(**changes: Any) -> Repetition:
    values: dict[str, Any] = {
        "seconds": 2.0,
        "num_requests": 10,
        "num_refused": 0,
        "num_prompt_tokens": 100,
        "num_cached_tokens": 0,
        "num_output_tokens": 50,
        "num_preemptions": 0,
        "peak_kv_cache_usage": 0.5,
        "latencies": {"queue_s": (0.0,), "ttft_s": (0.1,), "tpot_s": (), "e2e_s": (1.0, 2.0)},
    }
    return Repetition(**values | changes)


def run(
    workload: Workload, *, num_repetitions: int = 2, num_warmups: int = 0, **engine: Any
) -> BenchmarkResult:
    return run_benchmark(
        BenchmarkSpec(
            engine_args=EngineArgs(
                model=MODEL, is_offline=True, paged_attention_num_blocks=64, **engine
            ),
            sampling_params=SamplingParams(temperature=0, max_tokens=4),
            workload=workload,
            num_repetitions=num_repetitions,
            num_warmups=num_warmups,
        )
    )


def write_prompts(path: Path, *rows: object) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def test_a_percentile_lies_between_two_values_in_proportion() -> None:
    values = [1.0, 2.0, 3.0, 5.0]

    assert [percentile(values, share) for share in (0, 0.5, 0.9, 1)] == [1.0, 2.5, 4.4, 5.0]
    assert percentile([7.0], 0.99) == 7.0


def test_rates_have_a_mean_and_a_sample_deviation() -> None:
    summary = summarise([make_repetition(), make_repetition(seconds=1.0)])

    assert summary.rates == {
        "requests": Spread(mean=7.5, deviation=stdev([5, 10])),
        "prompt_tokens": Spread(mean=75.0, deviation=stdev([50, 100])),
        "output_tokens": Spread(mean=37.5, deviation=stdev([25, 50])),
        "total_tokens": Spread(mean=112.5, deviation=stdev([75, 150])),
    }


def test_a_single_repetition_has_no_deviation() -> None:
    assert summarise([make_repetition()]).rates["requests"] == Spread(mean=5.0, deviation=None)


def test_latencies_are_those_of_all_requests_together() -> None:
    other = make_repetition(
        latencies={"queue_s": (), "ttft_s": (), "tpot_s": (), "e2e_s": (3.0, 4.0, 5.0)}
    )

    latencies = summarise([make_repetition(), other]).latencies

    assert latencies["e2e_s"] == Percentiles(
        p50=3.0, p90=4.6, p99=percentile([1, 2, 3, 4, 5], 0.99)
    )
    assert latencies["tpot_s"] is None


def test_the_worst_cache_use_and_all_preemptions_are_told() -> None:
    summary = summarise(
        [
            make_repetition(num_preemptions=1, num_cached_tokens=50),
            make_repetition(num_preemptions=2, peak_kv_cache_usage=0.9),
        ]
    )

    assert (summary.num_preemptions, summary.peak_kv_cache_usage) == (3, 0.9)
    assert summary.cached_share == 0.25


def test_random_prompts_have_the_lengths_asked_for_and_answers_do_not_end_early() -> None:
    result = run(RandomWorkload(num_prompts=3, input_len=(5, 5), output_len=(7, 7)), num_warmups=1)

    assert len(result.repetitions) == 2
    for repetition in result.repetitions:
        assert (repetition.num_requests, repetition.num_refused) == (3, 0)
        assert (repetition.num_prompt_tokens, repetition.num_output_tokens) == (15, 21)
        assert len(repetition.latencies["e2e_s"]) == 3
        assert repetition.seconds > max(repetition.latencies["e2e_s"])
        assert 3 / 64 <= repetition.peak_kv_cache_usage <= 1


def test_random_prompts_are_new_in_each_repetition() -> None:
    workload = RandomWorkload(num_prompts=2, input_len=(64, 64), output_len=(1, 1))

    result = run(workload, num_repetitions=3, num_warmups=1)

    assert [repetition.num_cached_tokens for repetition in result.repetitions] == [0, 0, 0]


def test_random_lengths_are_the_same_for_the_same_seed() -> None:
    workload = RandomWorkload(num_prompts=4, input_len=(1, 50), output_len=(1, 9))

    def lengths(seed: int) -> list[tuple[int, int]]:
        return [
            (repetition.num_prompt_tokens, repetition.num_output_tokens)
            for repetition in run(workload, seed=seed).repetitions
        ]

    assert lengths(0) == lengths(0)
    assert lengths(0) != lengths(1)


def test_the_prompts_of_a_file_stay_the_same_and_the_cache_is_told(tmp_path: Path) -> None:
    path = write_prompts(
        tmp_path / "prompts.jsonl",
        {"prompt_token_ids": [*range(5, 45)], "max_tokens": 2, "ignore_eos": True},
        {"prompt": "Add 1 and 2.\n"},
        {"messages": [{"role": "user", "content": "What is 1 + 2?"}]},
        {"no prompt": 1},
        {"prompt": "beyond the first four"},
    )

    first, second = run(FileWorkload(input=path, num_prompts=4)).repetitions

    assert (first.num_requests, first.num_refused) == (3, 0)
    assert first.num_prompt_tokens == second.num_prompt_tokens
    assert (first.num_cached_tokens, second.num_cached_tokens) == (0, 32)


def test_prompts_that_are_refused_are_counted(tmp_path: Path) -> None:
    path = write_prompts(
        tmp_path / "prompts.jsonl",
        {"prompt_token_ids": [5, 6]},
        {"prompt_token_ids": [5] * 5000},
        {"nothing": 1},
    )

    result = run(FileWorkload(input=path))

    assert (result.summary.num_refused, result.num_unreadable) == (1, 1)


def test_answers_that_fail_are_counted_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    step = LLMEngine.step

    def fail_the_first(engine: LLMEngine) -> list[RequestOutput]:
        outputs = step(engine)
        return [
            replace(output, error=PromptFailedError("broken"))
            if output.request_id == "0"
            else output
            for output in outputs
        ]

    monkeypatch.setattr(LLMEngine, "step", fail_the_first)

    result = run(RandomWorkload(num_prompts=3, input_len=(4, 4), output_len=(2, 2)))

    first = result.repetitions[0]
    assert (first.num_requests, first.num_failed, first.num_output_tokens) == (2, 1, 4)
    assert (result.summary.num_failed, result.summary.first_error) == (2, "broken")
    with pytest.raises(ConfigError, match="none of the workload's prompts: broken"):
        run(RandomWorkload(num_prompts=1, input_len=(4, 4), output_len=(2, 2)))


def test_a_workload_that_never_fits_is_refused() -> None:
    with pytest.raises(ConfigError, match="answer none of the workload's prompts: This model's"):
        run(RandomWorkload(input_len=(5000, 5000)))


def test_an_empty_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="none of the workload's prompts: there are none"):
        run(FileWorkload(input=write_prompts(tmp_path / "prompts.jsonl")))
