"""Measures what a GPU does, in less than ten minutes, and prints it as a table.

    PYTHONPATH=engine:. python -m benchmarks.gpu --models FOLDER

The limits that results are shares of are measured first. Each model runs in a process of its own;
what fails, or would take too long, is "not measured", as is everything without a GPU.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import torch

from benchmarks.contenders import own_variables
from benchmarks.gpu_limits import Limits, measure_limits
from benchmarks.processes import Machine
from benchmarks.results import FOLDER
from benchmarks.workloads import make_workload, write_workload
from furiosa_llm_cli.machine import gpus, versions

NOT_MEASURED = "not measured"
_TIME_LIMIT_SECONDS = 570.0
_SMALL, _LARGE, _NANO = "llama-3.2-1b", "llama-3.1-8b", "qwen3-0.6b"

Figures = Mapping[str, Mapping[str, float]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """What one process measures.

    Attributes:
        name: What rows of the table call it.
        shape: The model's.
        workload: The requests.
        peer: Whether transformers' continuous batching runs it, in place of this engine.
        options: Of `benchmarks.gpu_engine`.
        seconds: The longest that it may take.
    """

    name: str
    shape: str
    workload: str = "gpu-mixed"
    peer: bool = False
    options: tuple[str, ...] = ()
    seconds: float = 200.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """A row of the table: where its figure comes from.

    Attributes:
        label: What was measured.
        job: Name of the job.
        part: Of what the job found.
        figure: Of that part.
        unit: "%" for a share.
    """

    label: str
    job: str
    part: str
    figure: str
    unit: str


JOBS = (
    Job(name="small", shape=_SMALL, options=("--steps",)),
    Job(name="nano", shape=_NANO, workload="nano-vllm"),
    Job(name="large", shape=_LARGE, options=("--steps",)),
    Job(name="large, FP8", shape=_LARGE, options=("--set", "quantization=fp8")),
    Job(name="small, transformers", shape=_SMALL, peer=True),
    Job(name="large, int4", shape=_LARGE, options=("--set", "quantization=int4")),
)
_REQUESTS = "1,024 requests, 128-512 in, 64-256 out"
ROWS = (
    *(
        row
        for shape, job in ((_SMALL, "small"), (_LARGE, "large"))
        for row in (
            Row(
                label=f"{shape}, {_REQUESTS}",
                job=job,
                part="requests",
                figure="output_tokens_per_second",
                unit="output tokens/s",
            ),
            Row(
                label=f"{shape}, the same, of the least time of its steps",
                job=job,
                part="requests",
                figure="share_of_roofline",
                unit="%",
            ),
            Row(
                label=f"{shape}, the same, share of some steps in which the GPU waits",
                job=job,
                part="trace",
                figure="idle_share",
                unit="%",
            ),
            Row(
                label=f"{shape}, decode, 256 requests at 1,000 tokens, of the copy bandwidth",
                job=job,
                part="decode",
                figure="share_of_copy",
                unit="%",
            ),
            Row(
                label=f"{shape}, prefill, 8 x 1,024 tokens a step, of the matrix rate",
                job=job,
                part="prefill",
                figure="share_of_matrix",
                unit="%",
            ),
        )
    ),
    Row(
        label=f"{_SMALL}, {_REQUESTS}, transformers' continuous batching",
        job="small, transformers",
        part="requests",
        figure="output_tokens_per_second",
        unit="output tokens/s",
    ),
    *(
        Row(
            label=f"{_LARGE}, {_REQUESTS}, {precision}",
            job=f"large, {precision}",
            part="requests",
            figure="output_tokens_per_second",
            unit="output tokens/s",
        )
        for precision in ("FP8", "int4")
    ),
    Row(
        label=f"{_NANO}, nano-vllm's 256 requests, 100-1,024 in and out",
        job="nano",
        part="requests",
        figure="output_tokens_per_second",
        unit="output tokens/s",
    ),
)


def table(limits: Limits | None, found: Mapping[str, Figures]) -> list[tuple[str, str]]:
    """Returns labels and what was measured, the limits first."""
    copy, matrix = NOT_MEASURED, NOT_MEASURED
    if limits is not None:
        copy = f"{limits.copy_bytes_per_second / 1e12:.2f} TB/s"
        matrix = f"{limits.matrix_flops_per_second / 1e12:.0f} TFLOP/s"
    lines = [("copy bandwidth", copy), ("bfloat16 matrix rate", matrix)]
    for row in ROWS:
        value = found.get(row.job, {}).get(row.part, {}).get(row.figure)
        if value is None:
            text = NOT_MEASURED
        elif row.unit == "%":
            text = f"{value:.0%}"
        else:
            text = f"{value:,.0f} {row.unit}"
        lines.append((row.label, text))
    return lines


def as_markdown(lines: Iterable[tuple[str, str]]) -> str:
    """Returns a table for a document."""
    return "\n".join(["| what | measured |", "|---|---|", *(f"| {a} | {b} |" for a, b in lines)])


def command(job: Job, *, models: Path, limits: Limits, workload: Path) -> list[str]:
    """Returns what runs a job."""
    checkpoint = str(models / job.shape)
    if job.peer:
        module, arguments = "drivers.transformers", [checkpoint, str(workload)]
        arguments += ["--mode", "continuous", "--dtype", "bfloat16", "--device", "cuda:0"]
    else:
        module, arguments = "gpu_engine", [checkpoint, job.workload, *job.options]
        arguments += ["--limits", json.dumps(dataclasses.asdict(limits))]
    return [sys.executable, "-m", f"benchmarks.{module}", *arguments]


def figures_of(job: Job, output: Mapping[str, object]) -> Figures:
    """Returns what a job printed, in the shape that rows look it up in."""
    if not job.peer:
        return output  # type: ignore[return-value]
    seconds, num_tokens = output["seconds"], output["num_output_tokens"]
    assert isinstance(seconds, float)
    assert isinstance(num_tokens, int)
    return {"requests": {"seconds": seconds, "output_tokens_per_second": num_tokens / seconds}}


def measure(
    jobs: Sequence[Job], models: Path, limits: Limits, *, end: float
) -> Iterator[tuple[Job, Figures | None, str | None]]:
    """Runs jobs until the time is over, and yields each when it is done.

    Args:
        jobs: In this order.
        models: The folder of checkpoints, which are made first where they are missing.
        limits: Of the GPU.
        end: When to stop, by `time.monotonic`.

    Yields:
        A job, and what it found, or why it found nothing.
    """
    models.mkdir(parents=True, exist_ok=True)
    for job in jobs:
        workload = models / f"{job.workload}.jsonl"
        if not workload.exists():
            write_workload(make_workload(job.workload), workload)
        job_end = min(time.monotonic() + job.seconds, end)
        maker = [sys.executable, "-m", "benchmarks.gpu_models", job.shape, str(models)]
        for words in (maker, command(job, models=models, limits=limits, workload=workload)):
            left = job_end - time.monotonic()
            if left < 1:
                yield job, None, "the time was over"
                break
            machine = Machine(lock=None, time_limit_seconds=left)
            finished = machine.run(words, variables=own_variables())
            if finished.problem is not None:
                yield job, None, finished.problem
                break
        else:
            yield job, figures_of(job, finished.output), None


def main() -> None:
    """Measures, prints the table, and writes the figures as JSON."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--models", type=Path, default=Path(".bench/gpu-models").absolute())
    parser.add_argument("--results", type=Path, default=FOLDER / "gpu")
    parser.add_argument("--seconds", type=float, default=_TIME_LIMIT_SECONDS)
    parser.add_argument("--jobs", nargs="+", choices=[job.name for job in JOBS])
    args = parser.parse_args()
    end = time.monotonic() + args.seconds
    started_at = datetime.now(UTC).isoformat(timespec="seconds")
    path = args.results / f"gpu-{started_at.replace(':', '').replace('+0000', 'Z')}.json"
    args.results.mkdir(parents=True, exist_ok=True)
    limits: Limits | None = None
    found: dict[str, Figures] = {}
    problems: dict[str, str] = {}

    def write() -> list[tuple[str, str]]:
        lines = table(limits, found)
        content = {
            "started_at": started_at,
            "gpus": [dataclasses.asdict(gpu) for gpu in gpus()],
            "versions": versions(),
            "limits": None if limits is None else dataclasses.asdict(limits),
            "table": dict(lines),
            "found": found,
            "problems": problems,
        }
        path.write_text(json.dumps(content, indent=1) + "\n")
        return lines

    if torch.cuda.is_available():
        limits = measure_limits(torch.device("cuda:0"))
        torch.cuda.empty_cache()
        jobs = [job for job in JOBS if not args.jobs or job.name in args.jobs]
        for job, figures, problem in measure(jobs, args.models.absolute(), limits, end=end):
            if figures is not None:
                found[job.name] = figures
            if problem is not None:
                problems[job.name] = problem
            print(f"{job.name}: {problem or 'done'}", file=sys.stderr)
            write()  # the machine may be lent for no longer than this
    print(as_markdown(write()))


if __name__ == "__main__":
    main()
