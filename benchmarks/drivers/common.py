"""What the drivers share: their arguments, and the line that they print.

It runs in the environment of any engine and needs nothing but Python.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

from benchmarks.workloads import WorkloadRow, read_workload

WARMUP_ROW = WorkloadRow(prompt_token_ids=list(range(100, 116)), max_tokens=2)

Answers = list[list[int]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """What a driver is asked to do.

    Attributes:
        model: A checkpoint folder or a GGUF file.
        rows: The workload.
        output: Where to write the tokens of the answers; None for nowhere.
        args: The driver's own options.
    """

    model: str
    rows: Sequence[WorkloadRow]
    output: Path | None
    args: argparse.Namespace


def read_task(parser: argparse.ArgumentParser) -> Task:
    """Reads the command line, and the workload that it names."""
    parser.add_argument("model", metavar="MODEL", help="a checkpoint folder or a GGUF file")
    parser.add_argument("workload", type=Path, metavar="WORKLOAD.jsonl")
    parser.add_argument("--output", type=Path, metavar="TOKENS.json", help="keep the answers")
    args = parser.parse_args()
    return Task(model=args.model, rows=read_workload(args.workload), output=args.output, args=args)


def measure(
    task: Task, generate: Callable[[Sequence[WorkloadRow]], Answers], *, packages: Sequence[str]
) -> None:
    """Answers the workload once and prints a JSON line with the seconds that it took.

    One short prompt goes first and is not counted: libraries compile and load on first use.

    Args:
        task: The workload, for a model that is loaded.
        generate: Answers rows, in their order.
        packages: Distributions whose versions the line states, the engine's own first.
    """
    generate([WARMUP_ROW])
    startup_seconds = _process_age_seconds()
    start = time.perf_counter()
    answers = generate(task.rows)
    seconds = time.perf_counter() - start
    for row, answer in zip(task.rows, answers, strict=True):
        if len(answer) != row.max_tokens:
            raise SystemExit(f"an answer has {len(answer)} tokens instead of {row.max_tokens}")
    if task.output is not None:
        task.output.write_text(json.dumps(answers))
    line = {
        "seconds": round(seconds, 3),
        "startup_seconds": round(startup_seconds, 2),
        "num_prompt_tokens": sum(len(row.prompt_token_ids) for row in task.rows),
        "num_output_tokens": sum(map(len, answers)),
        "versions": {name: version(name) for name in packages},
    }
    print(json.dumps(line), flush=True)


def _process_age_seconds() -> float:
    """Returns how long this process has been running, imports included."""
    fields = Path("/proc/self/stat").read_text().rpartition(")")[2].split()
    started = int(fields[19]) / os.sysconf("SC_CLK_TCK")
    return time.clock_gettime(time.CLOCK_BOOTTIME) - started
