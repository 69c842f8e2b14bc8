"""Runs contenders in turn, round after round, and collects their figures."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from benchmarks.contenders import Contender, own_variables
from benchmarks.flops import workload_flops
from benchmarks.models import Models, WorkloadFile, workload_file
from benchmarks.processes import Finished, Machine
from benchmarks.results import Run, WorkloadResult


@dataclass(frozen=True, slots=True, kw_only=True)
class Setup:
    """Where and how to measure.

    Attributes:
        machine: Runs the processes.
        models: Makes checkpoints.
        environments: The folder of the peers' environments.
        folder: For workloads and outputs, deleted in the end.
        num_rounds: How often each contender runs a workload.
        watches_memory: Whether to sample the memory of each run.
    """

    machine: Machine
    models: Models
    environments: Path
    folder: Path
    num_rounds: int
    watches_memory: bool = False


def measure_workload(
    setup: Setup,
    contenders: Sequence[Contender],
    *,
    shape: str,
    workload: str,
    num_rows: int | None = None,
) -> WorkloadResult:
    """Runs a workload with each contender in each round. One that fails is not tried again.

    Args:
        setup: Where and how.
        contenders: Who, in this order.
        shape: The model's shape.
        workload: The workload's name.
        num_rows: Take only the first rows; None takes all.
    """
    file = workload_file(workload, setup.folder, num_rows=num_rows)
    runs = [_empty_run(setup, contender, workload) for contender in contenders]
    rates: list[Mapping[str, Any]] = []
    for round_index in range(setup.num_rounds):
        rates.append(matrix_rates(setup.machine))
        for index, contender in enumerate(contenders):
            max_rounds = contender.max_rounds or setup.num_rounds
            if runs[index].problem is None and round_index < max_rounds:
                runs[index] = _run_once(setup, contender, runs[index], shape, file)
                report(f"{shape} {workload} round {round_index + 1}: {_last_figure(runs[index])}")
    return WorkloadResult(
        model=shape,
        workload=workload if num_rows is None else f"{workload}, first {num_rows}",
        num_requests=len(file.rows),
        num_prompt_tokens=file.num_prompt_tokens,
        num_output_tokens=file.num_output_tokens,
        flops=workload_flops(setup.models.config(shape), file.rows),
        matrix_rates=tuple(rate["onednn_prepacked"] for rate in rates),
        linear_rates=tuple(rate["linear"] for rate in rates),
        runs=tuple(runs),
    )


def matrix_rates(machine: Machine) -> Mapping[str, Any]:
    """Measures the machine's matrix rate in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.matrix_rate"]
    finished = machine.run(command, variables=own_variables())
    if finished.problem is not None:
        raise SystemExit(f"the matrix rate cannot be measured: {finished.problem}")
    return finished.output


def with_figures(run: Run, finished: Finished) -> Run:
    """Adds a process to a run; its last line says how long the generation took."""
    if finished.problem is not None:
        return replace(run, problem=finished.problem)
    figures = finished.output
    memory = (finished.peak_memory_bytes,) if finished.peak_memory_bytes else ()
    return replace(
        run,
        seconds=(*run.seconds, figures["seconds"]),
        startup_seconds=(*run.startup_seconds, figures["startup_seconds"]),
        peak_memory_bytes=(*run.peak_memory_bytes, *memory),
        busy_elsewhere=(*run.busy_elsewhere, finished.busy_elsewhere),
        versions=figures["versions"],
    )


def report(line: str) -> None:
    """Tells whoever waits how far it is."""
    print(line, file=sys.stderr, flush=True)


def _empty_run(setup: Setup, contender: Contender, workload: str) -> Run:
    is_installed = contender.python(setup.environments) is not None
    return Run(
        engine=contender.engine,
        is_ours=contender.is_ours,
        precision=contender.precision,
        settings=contender.settings_for(workload),
        problem=None if is_installed else "not installed",
    )


def _run_once(setup: Setup, contender: Contender, run: Run, shape: str, file: WorkloadFile) -> Run:
    command = [
        str(contender.python(setup.environments)),
        *("-m", f"benchmarks.drivers.{contender.driver}"),
        str(contender.model_path(setup.models, shape)),
        str(file.path),
        *run.settings,
    ]
    finished = setup.machine.run(
        command, variables=contender.variables, watches_memory=setup.watches_memory
    )
    return with_figures(run, finished)


def _last_figure(run: Run) -> str:
    if run.problem is not None:
        return f"{run.label}: {run.problem}"
    return (
        f"{run.label}: {run.seconds[-1]:.1f} s (and {run.startup_seconds[-1]:.1f} s to start; "
        f"{100 * run.busy_elsewhere[-1]:.0f} % of the machine was busy with other programs)"
    )
