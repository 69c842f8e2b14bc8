"""Writes docs/benchmarks.md from the JSON files of the measurements.

python -m benchmarks.report
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Sequence
from pathlib import Path

from benchmarks.figures import Spread, spread, times_as_fast
from benchmarks.results import (
    FOLDER,
    Run,
    Session,
    WorkloadResult,
    newest_results,
    read_sessions,
)
from furiosa_llm.device_mesh import counted

PAGE = Path(__file__).parents[1] / "docs" / "benchmarks.md"
_MAX_BUSY_ELSEWHERE = 0.05
_HEADER = """\
# Benchmarks

`python -m benchmarks.report` made this page from `benchmarks/results`; a test keeps it so.

    make bench-cpu      # this engine alone
    make bench-peers    # beside others, each in an environment of its own

Both take `BENCH_ARGS`, such as `--workloads mixed --rounds 1`; `bench-peers` takes `--engines` too.
Checkpoints have the shapes of SmolLM2-135M and 360M, and random weights; they, the environments
and the workloads are made on the spot. Every engine answers the same prompts, greedily, with
answers of the same length. Seconds are those of generation: the model is loaded, the prompts are
read, and one short prompt was answered before. Engines run in turn, round after round, because the
machine is not always equally fast; compare figures of one table only. vLLM runs without
`torch.compile`, which works for minutes before the first token. OpenVINO computes in bfloat16 by
default where a processor multiplies such numbers (AMX, AVX512_BF16); it was measured in float32,
too, as the others were.

- **seconds**: median of the rounds, and from the fastest to the slowest where there are several.
- **tokens/s**: tokens of prompts and answers together.
- **of the matrix rate**: arithmetic of the model's weights that the answers need, per second, as a
  share of the best float32 rate that oneDNN reached on this machine in the same round, with packed
  weights. Tokens that prompts share are needed once. Only products of fewer bits, or float32 made
  of bfloat16 in AMX tiles, can exceed 100 % on a quiet machine.
- **times as fast**: how many times as fast ours is in the same kind of precision, median of the
  ratios of each round.

![Seconds of each engine](benchmarks.svg)
"""
_WORKLOADS = {
    "mixed": "prompts of 32 to 256 tokens, answers of 32 to 128",
    "shared-prefix": "four groups that share 512 tokens, 48 of their own, answers of 32, shuffled",
    "long-prompts": "prompts of 2,000 tokens, answers of 64",
    "classification": "prompts of 40 tokens, answers of 2",
    "many-rows": "`furiosa-llm run` from start to end, prompts of 4 to 12 tokens, answers of one",
    "one row": "`furiosa-llm run` from start to end with a single row",
}


def render(sessions: Sequence[Session]) -> str:
    """Returns the whole page."""
    results = newest_results(sessions)
    parts = [_HEADER]
    for processor in dict.fromkeys(session.processor for session, _ in results):
        for kind, heading in (("peers", "Beside others"), ("engine", "This engine alone")):
            chosen = [
                (session, result)
                for session, result in results
                if session.kind == kind and session.processor == processor
            ]
            if chosen:
                parts.append(f"## {heading}, on {processor}\n")
                parts += [_section(session, result) for session, result in chosen]
    parts.append(_setting(session for session, _ in results))
    return "\n".join(parts)


def _section(session: Session, result: WorkloadResult) -> str:
    name = result.workload.partition(",")[0]
    rates = ""
    if result.matrix_rates:
        rates = f" Matrix rate: {_range(spread(result.matrix_rates), 0)} GFLOP/s."
    heading = f"### {result.model}: {result.workload}\n"
    intro = (
        f"{counted(result.num_requests, 'request')}: {_WORKLOADS[name]}; "
        f"{result.num_prompt_tokens:,} tokens in, {result.num_output_tokens:,} out.{rates} "
        f"Measured {session.started_at[:10]}.\n"
    )
    return "\n".join([heading, intro, *_table(result), *_disturbance(result), ""])


def _disturbance(result: WorkloadResult) -> list[str]:
    """Warns where other programs ran beside the measurement."""
    shares = [share for run in result.runs for share in run.busy_elsewhere]
    if max(shares, default=0) <= _MAX_BUSY_ELSEWHERE:
        return []
    return [f"\nOther programs kept up to {100 * max(shares):.0f} % of the cores busy meanwhile."]


def _table(result: WorkloadResult) -> list[str]:
    columns = ["engine", "seconds", "tokens/s"]
    if has_shares := any(result.shares(run) for run in result.runs):
        columns.append("of the matrix rate")
    if has_memory := any(run.peak_memory_bytes for run in result.runs):
        columns.append("memory")
    pairs = list(result.pairs())
    if pairs:
        columns.append("ours is … times as fast")
    lines = [_row(columns), _row(["---"] * len(columns))]
    for run in result.runs:
        cells = [run.label, *_speed(result, run)]
        if has_shares:
            cells.append(_share(result.shares(run)))
        if has_memory:
            cells.append(_memory(run))
        if pairs:
            cells.append(_ratio(pairs, run))
        lines.append(_row(cells))
    return lines


def _speed(result: WorkloadResult, run: Run) -> list[str]:
    if not run.seconds:
        return [run.problem or "not measured", ""]
    seconds = spread(run.seconds)
    num_tokens = result.num_prompt_tokens + result.num_output_tokens
    return [_range(seconds, 1), f"{num_tokens / seconds.median:,.0f}"]


def _share(share: Spread | None) -> str:
    return "" if share is None else f"{100 * share.median:.0f} %"


def _memory(run: Run) -> str:
    return f"{max(run.peak_memory_bytes) / 2**30:.2f} GiB" if run.peak_memory_bytes else ""


def _ratio(pairs: Sequence[tuple[Run, Run]], run: Run) -> str:
    """Ours in the same precision against this run; of several of ours, each."""
    ratios = [
        _range(spread(times_as_fast(ours.seconds, other.seconds)), 2)
        for ours, other in pairs
        if other is run
    ]
    return ", ".join(ratios)


def _setting(sessions: Iterable[Session]) -> str:
    """Lists machines, versions and settings, each once."""
    machines, versions, settings = dict[str, None](), dict[str, None](), dict[str, None]()
    for session in sessions:
        found = session.machine
        features = " ".join(name for name, is_there in found["cpu_features"].items() if is_there)
        memory = f"{found['memory_bytes'] / 2**30:.0f} GiB"
        machines[f"- {found['cpu']}, {found['usable_cores']} cores, {memory}, {features}"] = None
        versions[_listed(session.versions)] = None
        for result in session.workloads:
            for run in result.runs:
                if run.versions and not run.is_ours:
                    versions[_listed(run.versions)] = None
                if run.settings and run.seconds:
                    words = " ".join(run.settings)
                    settings[f"- {run.label}, {result.workload}: `{words}`"] = None
    return "\n".join(
        [
            "## Machine, versions, settings\n",
            *machines,
            *versions,
            "\nOptions of the drivers in `benchmarks/drivers`:\n",
            *settings,
            "",
        ]
    )


def _listed(versions: dict[str, str] | object) -> str:
    assert isinstance(versions, dict)
    return "- " + ", ".join(f"{name} {version}" for name, version in versions.items() if version)


def _range(values: Spread, digits: int) -> str:
    """Writes a median, and the range that it comes from if it shows."""
    median, lowest, highest = (
        f"{value:,.{digits}f}" for value in (values.median, values.lowest, values.highest)
    )
    return median if lowest == highest else f"{median} ({lowest} to {highest})"


def _row(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cells)} |"


def main() -> None:
    """Writes the page."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--results", type=Path, default=FOLDER)
    parser.add_argument("--page", type=Path, default=PAGE)
    args = parser.parse_args()
    args.page.write_text(render(read_sessions(args.results)))


if __name__ == "__main__":
    main()
