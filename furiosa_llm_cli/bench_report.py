"""Shows what a benchmark measured: as tables, as lines, and as JSON."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from rich.box import ROUNDED
from rich.console import Console
from rich.table import Table

from furiosa_llm.device_mesh import counted
from furiosa_llm.errors import DatasetError
from furiosa_llm_cli.formats import LATENCY_NAMES, count, duration, one_line, percent, rate
from furiosa_llm_cli.summary import MAX_ERROR, Fact, facts_table, plain_facts

if TYPE_CHECKING:
    from furiosa_llm.benchmark.figures import Spread
    from furiosa_llm.benchmark.runner import BenchmarkResult

_RATE_NAMES = {
    "requests": "requests/s",
    "prompt_tokens": "prompt tokens/s",
    "output_tokens": "output tokens/s",
    "total_tokens": "total tokens/s",
}
_PERCENTILES = ("p50", "p90", "p99")


def result_facts(result: BenchmarkResult, *, workload: str, import_seconds: float) -> list[Fact]:
    """Returns everything but the latencies, with its name."""
    summary = result.summary
    facts = [
        ("model", result.spec.engine_args.model),
        ("workload", f"{workload}; {counted(len(result.repetitions), 'repetition')}"),
        ("engine", result.placement),
        (
            "start-up",
            f"{duration(import_seconds + result.startup_seconds)}, not counted "
            f"(libraries {duration(import_seconds)}, model {duration(result.startup_seconds)})",
        ),
        *((_RATE_NAMES[name], _spread(value)) for name, value in summary.rates.items()),
        (
            "KV cache",
            f"{percent(summary.peak_kv_cache_usage)} of {count(result.num_blocks)} blocks of "
            f"{result.block_size} tokens at most, {count(summary.num_preemptions)} preemptions",
        ),
        ("prefix cache", f"{percent(summary.cached_share)} of the prompt tokens came from it"),
    ]
    num_left_out = summary.num_refused + result.num_unreadable
    if num_left_out:
        facts.append(("left out", f"{count(num_left_out)} prompts that cannot be answered"))
    if summary.num_failed:
        error = one_line(summary.first_error or "", MAX_ERROR)
        failed = f"{count(summary.num_failed)} answers, in no rate; for example: {error}"
        facts.append(("failed", failed))
    return facts


def latency_rows(result: BenchmarkResult) -> list[tuple[str, ...]]:
    """Returns a heading and one row for each latency."""
    rows: list[tuple[str, ...]] = [("milliseconds", "P50", "P90", "P99")]
    for name, values in result.summary.latencies.items():
        shown = (
            ("-",) * 3
            if values is None
            else (_milliseconds(getattr(values, p)) for p in _PERCENTILES)
        )
        rows.append((LATENCY_NAMES[name], *shown))
    return rows


def plain_result(result: BenchmarkResult, *, workload: str, import_seconds: float) -> str:
    """Returns the figures as aligned lines."""
    facts = result_facts(result, workload=workload, import_seconds=import_seconds)
    rows = latency_rows(result)
    width = max(len(row[0]) for row in rows) + 2
    latencies = [f"{name:<{width}}" + "".join(f"{cell:>10}" for cell in row) for name, *row in rows]
    return plain_facts(facts) + "\n\n" + "\n".join(latencies)


def print_result(
    console: Console, result: BenchmarkResult, *, workload: str, import_seconds: float
) -> None:
    """Draws the figures in a terminal."""
    heading, *rows = latency_rows(result)
    latencies = Table(title="Latency", title_justify="left", title_style="bold", box=ROUNDED)
    latencies.add_column(heading[0], style="dim")
    for name in heading[1:]:
        latencies.add_column(name, justify="right", no_wrap=True)
    for row in rows:
        latencies.add_row(*row)
    facts = result_facts(result, workload=workload, import_seconds=import_seconds)
    console.print(facts_table(facts))
    console.print()
    console.print(latencies)


def write_json(
    path: Path,
    result: BenchmarkResult,
    *,
    import_seconds: float,
    machine: Mapping[str, object],
    versions: Mapping[str, object],
) -> None:
    """Writes everything: figures, each repetition, options, and what it ran on.

    Raises:
        DatasetError: The file cannot be written.
    """
    content = {
        "started_at": result.started_at,
        "machine": machine,
        "versions": versions,
        **_spec_json(result),
        "placement": result.placement,
        "num_blocks": result.num_blocks,
        "block_size": result.block_size,
        "num_unreadable": result.num_unreadable,
        "import_seconds": import_seconds,
        "startup_seconds": result.startup_seconds,
        "summary": dataclasses.asdict(result.summary),
        "repetitions": [dataclasses.asdict(run) for run in result.repetitions],
    }
    try:
        path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    except OSError as error:
        raise DatasetError(f"{path}: cannot be written: {error.strerror}") from error


def _spec_json(result: BenchmarkResult) -> dict[str, object]:
    spec = result.spec
    sampling = dataclasses.asdict(spec.sampling_params)
    del sampling["output_kind"]
    if spec.sampling_params.logit_bias is not None:
        sampling["logit_bias"] = dict(spec.sampling_params.logit_bias)
    if not hasattr(spec.workload, "columns"):
        for name in ("max_tokens", "fits_context", "ignore_eos", "structured_outputs"):
            del sampling[name]  # the workload decides them
    workload: dict[str, object] = {"kind": type(spec.workload).__name__}
    for entry in dataclasses.fields(spec.workload):
        workload[entry.name] = getattr(spec.workload, entry.name)
    if "columns" in workload:
        columns = workload.pop("columns")
        for name in ("prompt_column", "params_column", "template"):
            workload[name] = getattr(columns, name)
    return {
        "engine_args": dataclasses.asdict(spec.engine_args),
        "sampling_params": sampling,
        "workload": workload,
        "num_warmups": spec.num_warmups,
        "num_repetitions": spec.num_repetitions,
    }


def _spread(value: Spread) -> str:
    if value.deviation is None:
        return rate(value.mean)
    decimals = 1 if value.mean < 100 else 0  # the same for both
    return f"{value.mean:,.{decimals}f} ± {value.deviation:,.{decimals}f}"


def _milliseconds(seconds: float) -> str:
    return f"{1000 * seconds:,.2f}"
