"""Measures our engine alone: precisions, replicas, memory, the first answer, many rows.

python -m benchmarks.measure_engine --workloads mixed
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from dataclasses import replace

from benchmarks.contenders import OURS, ours, own_variables, precisions
from benchmarks.models import TINY_MODEL, workload_file
from benchmarks.results import Run, WorkloadResult
from benchmarks.rounds import Setup, measure_workload, report, with_figures
from benchmarks.sessions import add_options, run_session

SHAPE = "llama-135m"
WORKLOADS = ("mixed", "shared-prefix", "long-prompts", "classification")
COMMANDS = ("cold-start", "many-rows")
_NUM_MANY_ROWS = (10_000, 100_000)
_WAYS = {
    "1 replica": ("data_parallel_size=1",),
    "2 replicas": ("data_parallel_size=2",),
}
_MORE_WAYS = {
    "mixed": {
        "1 replica of 1 thread": ("data_parallel_size=1", "threads_per_replica=1"),
        "2 replicas, deterministic": ("data_parallel_size=2", "deterministic=True"),
    },
    "shared-prefix": {
        "2 replicas, no prefix cache": ("data_parallel_size=2", "enable_prefix_caching=False")
    },
}


def measure_ways(setup: Setup, workload: str) -> WorkloadResult:
    """Runs a workload in each precision and each of the ways to run it."""
    return measure_workload(
        setup,
        [
            replace(ours(precision, *settings), precision=f"{precision}, {name}")
            for precision in precisions()
            for name, settings in (_WAYS | _MORE_WAYS.get(workload, {})).items()
        ],
        shape=SHAPE,
        workload=workload,
    )


def measure_command(
    setup: Setup, *, shape: str, workload: str, num_rows: int, label: str
) -> WorkloadResult:
    """Times the whole of `furiosa-llm run`, from its start to its end.

    Args:
        setup: Where and how.
        shape: The model's.
        workload: Its rows.
        num_rows: How many of them.
        label: What the result is called.
    """
    file = workload_file(workload, setup.folder, num_rows=num_rows)
    model = str(setup.models.checkpoint(shape))
    command = [
        *(sys.executable, "-m", "furiosa_llm_cli", "run", "--quiet", "--overwrite"),
        *("--model", model, "--devices", "cpu", "--input", str(file.path)),
        *("--output", str(setup.folder / "answers.parquet")),
    ]
    run = Run(engine=OURS, is_ours=True, precision="float32")
    for _ in range(setup.num_rounds):
        finished = setup.machine.run(command, variables=own_variables(), watches_memory=True)
        whole = {"seconds": round(finished.seconds, 3), "startup_seconds": 0.0, "versions": {}}
        run = with_figures(run, replace(finished, output=whole))
        report(f"{label}: {run.problem or f'{run.seconds[-1]:.1f} s'}")
    return WorkloadResult(
        model=shape,
        workload=label,
        num_requests=num_rows,
        num_prompt_tokens=file.num_prompt_tokens,
        num_output_tokens=file.num_output_tokens,
        flops=None,
        matrix_rates=(),
        linear_rates=(),
        runs=(run,),
    )


def measure(setup: Setup, workloads: list[str] | None) -> Iterator[WorkloadResult]:
    """Yields the results of the wanted workloads, or of all."""
    for workload in WORKLOADS:
        if not workloads or workload in workloads:
            yield measure_ways(setup, workload)
    if not workloads or "cold-start" in workloads:
        for shape, workload in ((SHAPE, "classification"), (TINY_MODEL, "many-rows")):
            yield measure_command(
                setup, shape=shape, workload=workload, num_rows=1, label="one row"
            )
    if not workloads or "many-rows" in workloads:
        once = replace(setup, num_rounds=1)
        for num_rows in _NUM_MANY_ROWS:
            yield measure_command(
                once,
                shape=TINY_MODEL,
                workload="many-rows",
                num_rows=num_rows,
                label=f"many-rows, {num_rows:,}",
            )


def main() -> None:
    """Measures what the command line asks for."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--workloads", nargs="+", choices=(*WORKLOADS, *COMMANDS))
    add_options(parser)
    args = parser.parse_args()
    run_session("engine", args, lambda setup: measure(setup, args.workloads), watches_memory=True)


if __name__ == "__main__":
    main()
