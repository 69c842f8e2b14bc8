"""What the commands that measure share: their options, and the file that they write."""

from __future__ import annotations

import argparse
import dataclasses
import tempfile
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path

from benchmarks.environments import DEFAULT_FOLDER
from benchmarks.models import Models
from benchmarks.processes import Machine
from benchmarks.results import FOLDER, Session, WorkloadResult, write_session
from benchmarks.rounds import Setup, report
from furiosa_llm_cli.machine import machine, versions

_DEFAULT_MODELS = Path(".bench/models")


def add_options(parser: argparse.ArgumentParser) -> None:
    """Adds the options that say where and how often to measure."""
    parser.add_argument("--rounds", type=int, default=3, metavar="N")
    parser.add_argument("--models", type=Path, default=_DEFAULT_MODELS, help="checkpoints")
    parser.add_argument("--environments", type=Path, default=DEFAULT_FOLDER, help="of peers")
    parser.add_argument("--results", type=Path, default=FOLDER, help="where the JSON file goes")
    parser.add_argument(
        "--lock", type=Path, metavar="FILE", help="lock this file for the time of each run"
    )


def run_session(
    kind: str,
    args: argparse.Namespace,
    measurements: Callable[[Setup], Iterator[WorkloadResult]],
    *,
    watches_memory: bool = False,
) -> None:
    """Measures, and writes the results so far after each workload.

    Args:
        kind: Of the session.
        args: With the options of `add_options`.
        measurements: Brings one result after another.
        watches_memory: Whether to sample the memory of each run.
    """
    session = Session(
        kind=kind,
        started_at=datetime.now(UTC).isoformat(timespec="seconds"),
        machine=dataclasses.asdict(machine()),
        versions=versions(),
        workloads=(),
    )
    with tempfile.TemporaryDirectory() as folder:
        setup = Setup(
            machine=Machine(lock=args.lock),
            models=Models(folder=args.models),
            environments=args.environments,
            folder=Path(folder),
            num_rounds=args.rounds,
            watches_memory=watches_memory,
        )
        for result in measurements(setup):
            session = dataclasses.replace(session, workloads=(*session.workloads, result))
            report(f"results so far: {write_session(session, args.results)}")
