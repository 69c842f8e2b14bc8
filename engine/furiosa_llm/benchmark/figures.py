"""The figures of a benchmark: each repetition, and all of them together."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

LATENCIES = ("queue_s", "ttft_s", "tpot_s", "e2e_s")


@dataclass(frozen=True, slots=True, kw_only=True)
class Repetition:
    """One run over the workload.

    Attributes:
        seconds: From the first request until the last answer.
        num_requests: Prompts answered.
        num_refused: Prompts that cannot be answered.
        num_failed: Prompts whose answers failed; in no other figure but the seconds.
        first_error: Why the first of them did.
        num_prompt_tokens: Tokens of the prompts answered.
        num_cached_tokens: Those of them that the prefix cache spared.
        num_output_tokens: Tokens of the answers.
        num_preemptions: Times that a request gave its blocks back.
        peak_kv_cache_usage: Largest share of blocks held, from 0 to 1.
        latencies: Seconds of each request, by the name of the measure.
    """

    seconds: float
    num_requests: int
    num_refused: int
    num_prompt_tokens: int
    num_cached_tokens: int
    num_output_tokens: int
    num_preemptions: int
    peak_kv_cache_usage: float
    latencies: Mapping[str, Sequence[float]]
    num_failed: int = 0
    first_error: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Spread:
    """Mean and sample deviation over the repetitions; a single one has no deviation."""

    mean: float
    deviation: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Percentiles:
    """Half, nine tenths and 99 hundredths of the values are not above these."""

    p50: float
    p90: float
    p99: float


@dataclass(frozen=True, slots=True, kw_only=True)
class BenchmarkSummary:
    """The figures of all repetitions together.

    Attributes:
        rates: Requests and tokens per second, by name.
        latencies: Over every request of every repetition, by measure; None where none has it.
        cached_share: Share of the prompt tokens that the prefix cache spared.
        num_preemptions: In all repetitions.
        num_refused: Prompts that cannot be answered, in one repetition.
        num_failed: Prompts whose answers failed, in all repetitions.
        first_error: Why the first of them did.
        peak_kv_cache_usage: Largest share of blocks held, from 0 to 1.
    """

    rates: Mapping[str, Spread]
    latencies: Mapping[str, Percentiles | None]
    cached_share: float
    num_preemptions: int
    num_refused: int
    peak_kv_cache_usage: float
    num_failed: int = 0
    first_error: str | None = None


def summarise(repetitions: Sequence[Repetition]) -> BenchmarkSummary:
    """Joins the figures of one or more repetitions."""
    num_prompt_tokens = sum(run.num_prompt_tokens for run in repetitions)
    num_cached_tokens = sum(run.num_cached_tokens for run in repetitions)
    return BenchmarkSummary(
        rates={
            "requests": _spread(run.num_requests / run.seconds for run in repetitions),
            "prompt_tokens": _spread(run.num_prompt_tokens / run.seconds for run in repetitions),
            "output_tokens": _spread(run.num_output_tokens / run.seconds for run in repetitions),
            "total_tokens": _spread(
                (run.num_prompt_tokens + run.num_output_tokens) / run.seconds for run in repetitions
            ),
        },
        latencies={
            name: _percentiles([value for run in repetitions for value in run.latencies[name]])
            for name in LATENCIES
        },
        cached_share=num_cached_tokens / num_prompt_tokens if num_prompt_tokens else 0.0,
        num_preemptions=sum(run.num_preemptions for run in repetitions),
        num_refused=max(run.num_refused for run in repetitions),
        peak_kv_cache_usage=max(run.peak_kv_cache_usage for run in repetitions),
        num_failed=sum(run.num_failed for run in repetitions),
        first_error=next((run.first_error for run in repetitions if run.num_failed), None),
    )


def percentile(values: Sequence[float], share: float) -> float:
    """Returns the value below which `share` of the sorted values lie, between two if need be.

    Args:
        values: In ascending order, at least one.
        share: From 0 to 1.
    """
    position = share * (len(values) - 1)
    below = int(position)
    above = min(below + 1, len(values) - 1)
    return values[below] + (position - below) * (values[above] - values[below])


def _spread(values: Iterable[float]) -> Spread:
    numbers = list(values)
    return Spread(
        mean=statistics.fmean(numbers),
        deviation=statistics.stdev(numbers) if len(numbers) > 1 else None,
    )


def _percentiles(values: Sequence[float]) -> Percentiles | None:
    if not values:
        return None
    ordered = sorted(values)
    p50, p90, p99 = (percentile(ordered, share) for share in (0.5, 0.9, 0.99))
    return Percentiles(p50=p50, p90=p90, p99=p99)
