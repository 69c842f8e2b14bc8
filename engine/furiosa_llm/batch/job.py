"""What a batch is asked to do."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from furiosa_llm.config import EngineArgs
from furiosa_llm.dataset.columns import ColumnMapping
from furiosa_llm.dataset.shard import WHOLE, Shard
from furiosa_llm.dataset.writer import DEFAULT_ROWS_PER_PART, DEFAULT_SECONDS_PER_PART
from furiosa_llm.error_limit import ErrorLimit
from furiosa_llm.sampling_params import SamplingParams

DEFAULT_GRACE_SECONDS = 30.0


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchJob:
    """What `run` was asked to do.

    Attributes:
        engine_args: How to load and run the model.
        sampling_params: For every row, as far as it does not bring its own.
        input: A file, a folder, a glob, `-`, or `datasets:NAME`; see `open_input`.
        output: The Parquet file to write, or a folder (with a slash at its end).
        overwrite: Replace an output that exists already.
        resume: Go on with the rows that an earlier run of the same job finished.
        retry_failed: Do its failed rows again; with `resume` only.
        rows_per_part: Rows after which finished ones are made durable.
        seconds_per_part: Time after which they are, however few there are.
        grace_seconds: How long rows that run may go on once the run is told to stop.
        deadline_seconds: Time after which the run is over, done or not.
        shard: Which of the input's rows to answer.
        columns: Which columns hold the prompt and the parameters.
        step_stats: Parquet file for the account of each engine step of this run.
        failed_rows: JSON lines file for all rows of the output that failed, as they were given.
        row_timeout_seconds: Longest time from a row's first step to its end.
        max_errors: Rows that may fail before the batch ends early; all of them if None.
        expected_column: Column that holds the right answer; answers are counted against it.
        num_examples: Answers to keep for a preview.
    """

    engine_args: EngineArgs
    sampling_params: SamplingParams
    input: str
    output: str | Path
    overwrite: bool = False
    resume: bool = False
    retry_failed: bool = False
    rows_per_part: int = DEFAULT_ROWS_PER_PART
    seconds_per_part: float = DEFAULT_SECONDS_PER_PART
    grace_seconds: float = DEFAULT_GRACE_SECONDS
    deadline_seconds: float | None = None
    shard: Shard = WHOLE
    columns: ColumnMapping = field(default_factory=ColumnMapping)
    step_stats: Path | None = None
    failed_rows: Path | None = None
    row_timeout_seconds: float | None = None
    max_errors: ErrorLimit | None = None
    expected_column: str | None = None
    num_examples: int = 0
