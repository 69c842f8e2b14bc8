"""What each part of offline scheduling gains: the same rows with it and without it.

    python -m benchmarks.scheduling               counts, and seconds by the account of a model
    python -m benchmarks.scheduling --measure 0   seconds of a small random model: one case

Counts are the same on every machine. Results are kept in benchmarks/results/scheduling.json, and
the table of docs/scheduling.md is made of them.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path

from benchmarks.scheduling_cases import CASES, Result, replica_results

_ROOT = Path(__file__).parents[1]
RESULTS = _ROOT / "benchmarks" / "results" / "scheduling.json"
PAGE = _ROOT / "docs" / "scheduling.md"
_HEADER = "| part | rows | measure | without | with | ratio |\n|---|---|---|---|---|---|\n"
_BEGIN, _END = "<!-- results: begin -->\n", "<!-- results: end -->\n"


def count() -> Iterator[Result]:
    """Yields what is the same on every machine."""
    for case in CASES:
        yield from case.results()
    yield from replica_results()


def measure(index: int) -> Iterator[Result]:
    """Yields the seconds of a case; the one after the last compares replicas."""
    from benchmarks import scheduling_measured as measured

    with tempfile.TemporaryDirectory() as name:
        checkpoint = Path(name)
        measured.make_checkpoint(checkpoint)
        if index < len(measured.CASES):
            yield from measured.measure(measured.CASES[index], checkpoint)
        else:
            yield from measured.measure_balance(checkpoint)


def read_results() -> list[Result]:
    """Returns the results that are kept."""
    if not RESULTS.exists():
        return []
    return [Result(**entry) for entry in json.loads(RESULTS.read_text("utf-8"))]


def write_results(results: Iterable[Result]) -> None:
    """Keeps results, in place of those of the same part, rows and measure."""
    kept = {_key(result): result for result in [*read_results(), *results]}
    RESULTS.parent.mkdir(exist_ok=True)
    entries = [dataclasses.asdict(result) for result in kept.values()]
    RESULTS.write_text(json.dumps(entries, indent=1) + "\n", "utf-8")


def render(results: Iterable[Result]) -> str:
    """Returns the table, the lines of a part together."""
    ordered = sorted(results, key=lambda result: result.part)
    return _HEADER + "".join(_render_line(result) for result in ordered)


def with_table(page: str, table: str) -> str:
    """Returns the page with this table in the place of the one that it has."""
    before, _, rest = page.partition(_BEGIN)
    return before + _BEGIN + table + _END + rest.partition(_END)[2]


def _key(result: Result) -> tuple[str, str, str]:
    return result.part, result.rows, result.measure


def _render_line(result: Result) -> str:
    ratio = "" if result.ratio is None else f"{result.ratio:.2f}"
    cells = result.part, result.rows, result.measure, _number(result.off), _number(result.on), ratio
    return f"| {' | '.join(cells)} |\n"


def _number(value: float) -> str:
    return f"{value:,}" if isinstance(value, int) else f"{value:.1f}"


def main() -> None:
    """Runs what is asked for, keeps the results, and writes the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--measure", type=int, metavar="CASE", help="measure this case, from 0, instead of counting"
    )
    case: int | None = parser.parse_args().measure
    results = []
    for result in count() if case is None else measure(case):
        print(_render_line(result), end="", flush=True)
        results.append(result)
    write_results(results)
    if PAGE.exists():
        PAGE.write_text(with_table(PAGE.read_text("utf-8"), render(read_results())), "utf-8")


if __name__ == "__main__":
    main()
