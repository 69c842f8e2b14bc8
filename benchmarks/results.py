"""What a session of measurements brings, as a JSON file."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.figures import Spread, matrix_shares, spread, times_as_fast

FOLDER = Path(__file__).parent / "results"

# By which processors multiply matrices, the best last, and what tells that they have them.
_INSTRUCTIONS = {"AVX2": "avx2", "AVX-512": "avx512f", "AMX": "amx_int8"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """One way to run a workload, in every round.

    Attributes:
        engine: Its name.
        is_ours: Whether it is the engine of this project.
        precision: Of its matrix products.
        settings: Options of its driver.
        seconds: Of generation, a figure for each round.
        startup_seconds: Until the first token could be asked for, likewise.
        peak_memory_bytes: Proportional set size of all its processes, likewise; may be empty.
        busy_elsewhere: Share of the cores that other programs kept busy meanwhile, likewise.
        versions: Of the engine and the libraries that it stands on.
        problem: Why there are no figures; None if there are.
    """

    engine: str
    is_ours: bool
    precision: str
    settings: tuple[str, ...] = ()
    seconds: tuple[float, ...] = ()
    startup_seconds: tuple[float, ...] = ()
    peak_memory_bytes: tuple[int, ...] = ()
    busy_elsewhere: tuple[float, ...] = ()
    versions: Mapping[str, str] = dataclasses.field(default_factory=dict)
    problem: str | None = None

    @property
    def label(self) -> str:
        """What stands in tables."""
        return f"{self.engine}, {self.precision}"


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkloadResult:
    """A workload, and everything that ran it.

    Attributes:
        model: The shape of the model.
        workload: The workload's name.
        num_requests: Its rows.
        num_prompt_tokens: Their tokens.
        num_output_tokens: Tokens of the answers.
        flops: Operations that the answers need at least; None where nobody asks.
        matrix_rates: GFLOP/s of prepacked oneDNN products, measured in each round.
        linear_rates: GFLOP/s of `torch.nn.functional.linear`, likewise.
        runs: In the order in which they ran.
    """

    model: str
    workload: str
    num_requests: int
    num_prompt_tokens: int
    num_output_tokens: int
    flops: int | None
    matrix_rates: tuple[float, ...]
    linear_rates: tuple[float, ...]
    runs: tuple[Run, ...]

    def shares(self, run: Run) -> Spread | None:
        """Returns the part of the matrix rate that a run reached."""
        if self.flops is None or not run.seconds or not self.matrix_rates:
            return None
        return spread(matrix_shares(self.flops, run.seconds, self.matrix_rates))

    def pairs(self) -> Iterable[tuple[Run, Run]]:
        """Yields each run of ours with each of another engine in the same kind of precision."""
        for ours in self.runs:
            for other in self.runs:
                if not ours.is_ours or other.is_ours or not (ours.seconds and other.seconds):
                    continue
                if ours.precision.split()[0] == other.precision.split()[0]:
                    yield ours, other


@dataclass(frozen=True, slots=True, kw_only=True)
class Session:
    """All that was measured in one go.

    Attributes:
        kind: `engine` for ours alone, `peers` for ours beside others.
        started_at: Date and time in UTC.
        machine: Processor, cores, memory, features.
        versions: Of this program and its libraries.
        workloads: The results.
    """

    kind: str
    started_at: str
    machine: Mapping[str, Any]
    versions: Mapping[str, str | None]
    workloads: tuple[WorkloadResult, ...]

    @property
    def processor(self) -> str:
        """What tables of one processor are told from those of others by."""
        features = self.machine["cpu_features"]
        names = [name for name, feature in _INSTRUCTIONS.items() if features.get(feature)]
        name = self.machine["cpu"].replace("(R)", "").replace(" Processor", "")
        return f"{name} ({names[-1]})" if names else name


def write_session(session: Session, folder: Path) -> Path:
    """Writes a session, with what follows from its figures, and returns the file."""
    folder.mkdir(parents=True, exist_ok=True)
    moment = session.started_at.replace(":", "").replace("+0000", "Z")
    path = folder / f"{session.kind}-{moment}.json"
    content = {
        **dataclasses.asdict(session),
        "workloads": [_with_conclusions(result) for result in session.workloads],
    }
    path.write_text(json.dumps(content, indent=1) + "\n")
    return path


def read_session(path: Path) -> Session:
    """Reads what `write_session` wrote; what follows from the figures is left out."""
    content = json.loads(path.read_text())
    return Session(
        **_fields(Session, content)
        | {"workloads": tuple(_workload(entry) for entry in content["workloads"])}
    )


def read_sessions(folder: Path) -> list[Session]:
    """Reads the sessions in a folder, whose names end with the moment at which they began."""
    return [read_session(path) for path in sorted(folder.glob("*-*Z.json"))]


def newest_results(sessions: Sequence[Session]) -> list[tuple[Session, WorkloadResult]]:
    """Returns the newest result of each workload on each processor.

    They come in the order in which they were first measured. A later session may have measured only
    some of them again.
    """
    newest: dict[tuple[str, ...], tuple[Session, WorkloadResult]] = {}
    for session in sorted(sessions, key=lambda session: session.started_at):
        for result in session.workloads:
            key = session.processor, session.kind, result.model, result.workload
            newest[key] = session, result
    return list(newest.values())


def _with_conclusions(result: WorkloadResult) -> dict[str, object]:
    content = dataclasses.asdict(result)
    for entry, run in zip(content["runs"], result.runs, strict=True):
        if run.seconds:
            entry["seconds_spread"] = dataclasses.asdict(spread(run.seconds))
        if (shares := result.shares(run)) is not None:
            entry["share_of_matrix_rate"] = dataclasses.asdict(shares)
    content["times_as_fast"] = [
        {
            "ours": ours.label,
            "other": other.label,
            "by_round": (ratios := times_as_fast(ours.seconds, other.seconds)),
            **dataclasses.asdict(spread(ratios)),
        }
        for ours, other in result.pairs()
    ]
    return content


def _workload(content: Mapping[str, Any]) -> WorkloadResult:
    runs = tuple(Run(**_fields(Run, entry)) for entry in content["runs"])
    return WorkloadResult(**_fields(WorkloadResult, content) | {"runs": runs})


def _fields(owner: type, content: Mapping[str, Any]) -> dict[str, Any]:
    """Returns what belongs to a dataclass; JSON has lists where it has tuples."""
    return {
        field.name: tuple(value) if isinstance(value := content[field.name], list) else value
        for field in dataclasses.fields(owner)
    }
