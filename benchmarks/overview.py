"""Prints the README's tables: seconds of this engine beside the others', from the measurements.

python -m benchmarks.overview
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from benchmarks.figures import spread
from benchmarks.results import FOLDER, Session, WorkloadResult, newest_results, read_sessions

_MODEL = "llama-135m"
_WORKLOADS = {
    "mixed": "64 prompts of 32 to 256 tokens, answers of 32 to 128",
    "shared-prefix": "64 prompts in 4 groups that share 512 tokens",
    "long-prompts": "16 prompts of 2,000 tokens",
    "classification": "512 prompts of 40 tokens, answers of 2",
}


def render(sessions: Sequence[Session]) -> str:
    """Returns a table for each processor, with a row for each workload and kind of precision."""
    results: dict[str, dict[str, WorkloadResult]] = {}
    for session, result in newest_results(sessions):
        if session.kind == "peers" and result.model == _MODEL:
            results.setdefault(session.processor, {})[result.workload] = result
    tables = (f"On {name}:\n\n{_table(found)}" for name, found in results.items())
    return "\n".join(tables)


def _table(results: Mapping[str, WorkloadResult]) -> str:
    names = [name for name in _WORKLOADS if name in results]
    engines = list(dict.fromkeys(run.engine for name in names for run in results[name].runs))
    lines = [["workload", "precision", *engines], ["---"] * (2 + len(engines))]
    for name in names:
        lines += _rows(_WORKLOADS[name], results[name], engines)
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def _rows(meaning: str, result: WorkloadResult, engines: Sequence[str]) -> Iterator[list[str]]:
    kinds = dict.fromkeys(run.precision.split()[0] for run in result.runs if run.seconds)
    for kind in kinds:
        seconds = {
            run.engine: f"{spread(run.seconds).median:,.1f}"
            for run in result.runs
            if run.seconds and run.precision.split()[0] == kind
        }
        yield [meaning, kind, *(seconds.get(engine, "") for engine in engines)]


if __name__ == "__main__":
    print(render(read_sessions(FOLDER)), end="")
