"""Runs the command line in this process, with a batch that only pretends."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from click.testing import CliRunner

from furiosa_llm.batch.job import BatchJob
from furiosa_llm.batch.summary import BatchSummary, Progress
from furiosa_llm_cli.main import cli

REQUIRED = ("--model", "m", "--input", "in.jsonl", "--output", "out.parquet")


@dataclass(frozen=True)
class Outcome:
    exit_code: int
    stdout: str
    stderr: str
    exception: BaseException | None


def invoke(*args: str, env: Mapping[str, str] | None = None) -> Outcome:
    """Runs `furiosa-llm ARGS`. A bug's exception is kept, as Python would show it."""
    result = CliRunner().invoke(cli, args, prog_name="furiosa-llm", env=env)
    exception = None if isinstance(result.exception, SystemExit) else result.exception
    return Outcome(result.exit_code, result.stdout, result.stderr, exception)


def make_summary(**changes: Any) -> BatchSummary:
    values: dict[str, Any] = {
        "output": Path("out.parquet"),
        "num_rows": 80,
        "num_failed": 0,
        "error_counts": {},
        "num_prompt_tokens": 12000,
        "num_cached_tokens": 3000,
        "num_output_tokens": 5000,
        "num_preemptions": 2,
        "peak_kv_cache_usage": 0.345,
        "placement": "2 replicas, 1 thread each, on cpu",
        "num_blocks": 4096,
        "block_size": 32,
        "startup_seconds": 1.25,
        "answer_seconds": 10.0,
        "write_seconds": 0.2,
    }
    return BatchSummary(**values | changes)


def make_progress(**changes: Any) -> Progress:
    return Progress(**{"phase": "answering"} | changes)


@dataclass
class FakeBatch:
    """Stands for `run_batch_job`: remembers the job and does what it is told."""

    summary: BatchSummary = field(default_factory=make_summary)
    error: BaseException | None = None
    progress: Sequence[Progress] = ()
    jobs: list[BatchJob] = field(default_factory=list)

    def __call__(
        self, job: BatchJob, *, on_progress: Callable[[Progress], None] | None = None
    ) -> BatchSummary:
        self.jobs.append(job)
        for progress in self.progress:
            if on_progress is not None:
                on_progress(progress)
        if self.error is not None:
            raise self.error
        return self.summary

    @property
    def job(self) -> BatchJob:
        """The one job that was run."""
        (job,) = self.jobs
        return job
