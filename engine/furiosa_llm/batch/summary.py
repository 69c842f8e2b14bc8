"""How far a batch has come, and how it went."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """How far a batch has come.

    Attributes:
        phase: `loading`, `answering`, `writing` or `done`.
        placement: How many replicas run, and on what; empty while loading.
        num_rows: Rows of the input; None while that is not known.
        num_done: Rows that are answered or failed.
        num_failed: The failed ones among them.
        num_resumed: Rows that an earlier run had answered.
        num_prompt_tokens: Prompt tokens of the rows done and running so far.
        num_output_tokens: Tokens generated so far.
        num_running: Requests that hold KV-cache blocks.
        num_waiting: Rows in the engine that wait for blocks.
        kv_cache_usage: Share of the blocks that are held, from 0 to 1.
        elapsed_seconds: Since the phase `answering` began.
    """

    phase: str
    placement: str = ""
    num_rows: int | None = None
    num_done: int = 0
    num_failed: int = 0
    num_resumed: int = 0
    num_prompt_tokens: int = 0
    num_output_tokens: int = 0
    num_running: int = 0
    num_waiting: int = 0
    kv_cache_usage: float = 0.0
    elapsed_seconds: float = 0.0

    def as_status(self, num_saved: int) -> dict[str, object]:
        """Returns what a watcher wants to know; `num_saved` rows are on the disk."""
        num_new = self.num_done - self.num_failed - self.num_resumed
        rate = num_new / self.elapsed_seconds if self.elapsed_seconds > 0 else 0.0
        num_left = None if self.num_rows is None else self.num_rows - self.num_done
        return {
            "rows_total": self.num_rows,
            "rows_done": self.num_done,
            "rows_failed": self.num_failed,
            "rows_saved": num_saved,
            "rows_per_second": round(rate, 3),
            "seconds_left": round(num_left / rate, 1) if rate and num_left is not None else None,
        }


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


@dataclass(frozen=True, slots=True)
class FirstError:
    """Why a row failed, the first of those that failed in this way."""

    row_index: int
    error: str


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchSummary:
    """How a batch went.

    Attributes:
        output: Where the answers are.
        num_rows: Rows of the output.
        num_failed: Rows that have an error in place of an answer.
        error_counts: Failed rows by `error_code`.
        num_prompt_tokens: Tokens of the prompts that this run answered.
        num_cached_tokens: Those of them that the prefix cache spared.
        num_output_tokens: Tokens of its answers.
        num_preemptions: Times that a request gave its blocks back.
        peak_kv_cache_usage: Largest share of blocks held, from 0 to 1.
        placement: How many replicas ran, and on what.
        num_blocks: Blocks of each replica's KV cache.
        block_size: Tokens in one of them.
        startup_seconds: Until the model was ready, without what loading libraries took.
        import_seconds: What loading libraries took.
        answer_seconds: From then until the last row was answered.
        write_seconds: From then until the output was complete.
        num_expected: Rows that have an expected answer.
        num_right: Those whose answer equals it.
        examples: The first answers, in input order.
        first_errors: Of each `error_code`, the first row that failed so in this run.
        notes: What the user should know, such as renamed columns.
        num_resumed: Rows that an earlier run had done.
        was_complete: Whether the output was there already, and this run did nothing.
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
    placement: str
    num_blocks: int
    block_size: int
    startup_seconds: float
    answer_seconds: float
    write_seconds: float
    import_seconds: float = 0.0
    num_expected: int = 0
    num_right: int = 0
    examples: tuple[Example, ...] = ()
    first_errors: Mapping[str, FirstError] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    num_resumed: int = 0
    was_complete: bool = False

    @classmethod
    def of_complete(cls, output: Path, counts: Mapping[str, int]) -> BatchSummary:
        """Returns the summary of a run that found its output complete; `counts` tell of it."""
        num_rows = counts.get("num_rows", 0)
        return cls(
            output=output,
            num_rows=num_rows,
            num_failed=counts.get("num_failed", 0),
            error_counts={},
            num_prompt_tokens=0,
            num_cached_tokens=0,
            num_output_tokens=0,
            num_preemptions=0,
            peak_kv_cache_usage=0.0,
            placement="",
            num_blocks=0,
            block_size=0,
            startup_seconds=0.0,
            answer_seconds=0.0,
            write_seconds=0.0,
            num_resumed=num_rows,
            was_complete=True,
        )

    @property
    def num_answered(self) -> int:
        """Rows that have an answer."""
        return self.num_rows - self.num_failed
