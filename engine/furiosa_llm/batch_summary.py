"""How far a batch has come, and how it went."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from furiosa_llm.config import CacheConfig
from furiosa_llm.dataset.answer import AnswerRow
from furiosa_llm.dataset.saved_parts import SavedRows
from furiosa_llm.outputs import StepStats


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


@dataclass(slots=True, kw_only=True)
class Tally:
    """Counts a batch while it runs.

    Attributes:
        expected_column: Column that holds the right answer, if any.
        num_examples: Answers to keep for a preview, by row index from 0.
    """

    expected_column: str | None = None
    num_examples: int = 0
    num_rows: int = 0
    num_failed: int = 0
    num_resumed: int = 0
    num_resumed_prompt_tokens: int = 0
    num_resumed_output_tokens: int = 0
    error_counts: Counter[str] = field(default_factory=Counter)
    num_prompt_tokens: int = 0
    num_cached_tokens: int = 0
    num_output_tokens: int = 0
    num_preemptions: int = 0
    peak_kv_cache_usage: float = 0.0
    num_computed_prompt_tokens: int = 0
    num_sampled_tokens: int = 0
    num_expected: int = 0
    num_right: int = 0
    examples: dict[int, Example] = field(default_factory=dict)
    latest_steps: dict[int, StepStats] = field(default_factory=dict)  # by replica

    def add_saved(self, saved: SavedRows) -> None:
        """Counts the rows that an earlier run had done."""
        self.num_resumed = len(saved.done)
        self.num_rows += self.num_resumed
        self.num_failed += saved.error_counts.total()
        self.error_counts.update(saved.error_counts)
        self.num_resumed_prompt_tokens = saved.num_prompt_tokens
        self.num_resumed_output_tokens = saved.num_output_tokens

    def add_row(self, answer: AnswerRow, prompt: str) -> None:
        """Counts a row that is answered or has failed. `prompt` is for the preview."""
        self.num_rows += 1
        if answer.error_code is not None:
            self.num_failed += 1
            self.error_counts[answer.error_code] += 1
        self.num_prompt_tokens += answer.num_prompt_tokens
        self.num_cached_tokens += answer.num_cached_tokens
        self.num_output_tokens += answer.num_output_tokens
        self.num_preemptions += answer.num_preemptions
        expected = self._expected(answer)
        is_right = None
        if expected is not None:
            is_right = answer.text.strip() == expected.strip()
            self.num_expected += 1
            self.num_right += is_right
        if answer.row_index < self.num_examples:
            self.examples[answer.row_index] = Example(
                request_id=answer.request_id,
                prompt=prompt,
                answer=answer.text if answer.error is None else answer.error,
                expected=expected,
                is_right=is_right,
            )

    def add_step(self, stats: StepStats) -> None:
        """Counts an engine step."""
        self.num_computed_prompt_tokens += stats.num_prefill_tokens + stats.num_cached_tokens
        self.num_sampled_tokens += stats.num_sampled_tokens
        self.peak_kv_cache_usage = max(self.peak_kv_cache_usage, stats.kv_cache_usage)
        self.latest_steps[stats.replica] = stats

    @property
    def num_running(self) -> int:
        """Requests that held KV-cache blocks in the latest step of each replica."""
        return sum(step.num_running for step in self.latest_steps.values())

    @property
    def kv_cache_usage(self) -> float:
        """Share of the blocks that were held then, from 0 to 1."""
        usages = [step.kv_cache_usage for step in self.latest_steps.values()]
        return sum(usages) / len(usages) if usages else 0.0

    def counts(self) -> dict[str, int]:
        """Returns what the manifest tells of the rows."""
        return {
            "num_rows": self.num_rows,
            "num_failed": self.num_failed,
            "num_prompt_tokens": self.num_resumed_prompt_tokens + self.num_prompt_tokens,
            "num_output_tokens": self.num_resumed_output_tokens + self.num_output_tokens,
        }

    def summary(
        self,
        *,
        output: Path,
        placement: str,
        cache_config: CacheConfig,
        startup_seconds: float,
        answer_seconds: float,
        write_seconds: float,
        notes: tuple[str, ...],
    ) -> BatchSummary:
        """Returns the summary of a batch that has ended."""
        return BatchSummary(
            output=output,
            num_rows=self.num_rows,
            num_failed=self.num_failed,
            error_counts=dict(self.error_counts.most_common()),
            num_prompt_tokens=self.num_prompt_tokens,
            num_cached_tokens=self.num_cached_tokens,
            num_output_tokens=self.num_output_tokens,
            num_preemptions=self.num_preemptions,
            peak_kv_cache_usage=self.peak_kv_cache_usage,
            placement=placement,
            num_blocks=cache_config.num_blocks,
            block_size=cache_config.block_size,
            startup_seconds=startup_seconds,
            answer_seconds=answer_seconds,
            write_seconds=write_seconds,
            num_expected=self.num_expected,
            num_right=self.num_right,
            examples=tuple(self.examples[index] for index in sorted(self.examples)),
            notes=notes,
            num_resumed=self.num_resumed,
        )

    def _expected(self, answer: AnswerRow) -> str | None:
        if self.expected_column is None:
            return None
        expected = answer.carried.get(self.expected_column)
        return None if expected is None else str(expected)
