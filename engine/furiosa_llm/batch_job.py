"""Runs a batch: rows in, answers out, one output row for each input row."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from furiosa_llm.config import EngineArgs
from furiosa_llm.dataset.columns import ColumnMapping
from furiosa_llm.sampling_params import SamplingParams


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchJob:
    """What `run` was asked to do.

    Attributes:
        engine_args: How to load and run the model.
        sampling_params: For every row, as far as it does not bring its own.
        input: A file, a folder, a glob, `-`, or `datasets:NAME`; see `open_input`.
        output: The Parquet file to write, or a folder.
        overwrite: Replace an output that exists already.
        columns: Which columns hold the prompt and the parameters.
        step_stats: Parquet file for the account of each engine step.
        expected_column: Column that holds the right answer; answers are counted against it.
        num_examples: Answers to keep for a preview.
    """

    engine_args: EngineArgs
    sampling_params: SamplingParams
    input: str
    output: Path
    overwrite: bool = False
    columns: ColumnMapping = field(default_factory=ColumnMapping)
    step_stats: Path | None = None
    expected_column: str | None = None
    num_examples: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """How far a batch has come.

    Attributes:
        phase: `loading`, `answering`, `writing` or `done`.
        num_rows: Rows of the input; None while that is not known.
        num_done: Rows that are answered or failed.
        num_failed: The failed ones among them.
        num_prompt_tokens: Prompt tokens of the rows done and running so far.
        num_output_tokens: Tokens generated so far.
        num_running: Requests that hold KV-cache blocks.
        num_waiting: Rows in the engine that wait for blocks.
        kv_cache_usage: Share of the blocks that are held, from 0 to 1.
        elapsed_seconds: Since the phase `answering` began.
    """

    phase: str
    num_rows: int | None = None
    num_done: int = 0
    num_failed: int = 0
    num_prompt_tokens: int = 0
    num_output_tokens: int = 0
    num_running: int = 0
    num_waiting: int = 0
    kv_cache_usage: float = 0.0
    elapsed_seconds: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Example:
    """One answer, for a preview.

    Attributes:
        request_id: The row's id.
        prompt: Its text, or the last message of its chat.
        answer: The answer, or the error.
        expected: The right answer, if the input has it.
        is_right: Whether they agree; None without an expected answer.
    """

    request_id: str
    prompt: str
    answer: str
    expected: str | None = None
    is_right: bool | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchSummary:
    """How a batch went.

    Attributes:
        output: Where the answers are.
        num_rows: Rows read, and written.
        num_failed: Rows that have an error in place of an answer.
        error_counts: Failed rows by `error_code`.
        num_prompt_tokens: Tokens of all prompts.
        num_cached_tokens: Those of them that the prefix cache spared.
        num_output_tokens: Tokens of all answers.
        num_preemptions: Times that a request gave its blocks back.
        peak_kv_cache_usage: Largest share of blocks held, from 0 to 1.
        num_blocks: Blocks of the KV cache.
        block_size: Tokens in one of them.
        startup_seconds: Until the model was ready.
        answer_seconds: From then until the last row was answered.
        write_seconds: From then until the output was complete.
        num_expected: Rows that have an expected answer.
        num_right: Those whose answer equals it.
        examples: The first answers, in input order.
        notes: What the user should know, such as renamed columns.
    """

    output: Path
    num_rows: int
    num_failed: int
    error_counts: Mapping[str, int]
    num_prompt_tokens: int
    num_cached_tokens: int
    num_output_tokens: int
    num_preemptions: int
    peak_kv_cache_usage: float
    num_blocks: int
    block_size: int
    startup_seconds: float
    answer_seconds: float
    write_seconds: float
    num_expected: int = 0
    num_right: int = 0
    examples: tuple[Example, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def num_answered(self) -> int:
        """Rows that have an answer."""
        return self.num_rows - self.num_failed


def run_batch_job(
    job: BatchJob, *, on_progress: Callable[[Progress], None] | None = None
) -> BatchSummary:
    """Answers every row of the input and writes one output row for each."""
    raise AssertionError("under construction")
