"""Counts a batch while it runs."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from furiosa_llm.batch.summary import BatchSummary, Example, FirstError, Progress
from furiosa_llm.dataset.answer import AnswerRow
from furiosa_llm.dataset.arrow_values import value_text
from furiosa_llm.dataset.saved_parts import SavedRows
from furiosa_llm.engine_limits import CacheConfig
from furiosa_llm.outputs import StepStats


@dataclass(slots=True, kw_only=True)
class Tally:
    """Counts a batch while it runs.

    Attributes:
        expected_column: Column that holds the right answer, if any.
        num_examples: Answers to keep for a preview, by row index from 0.
        has_own_params: Whether any row has the column of its own parameters.
    """

    expected_column: str | None = None
    num_examples: int = 0
    has_own_params: bool = False
    num_rows: int = 0
    num_failed: int = 0
    num_resumed: int = 0
    num_resumed_failed: int = 0
    num_resumed_prompt_tokens: int = 0
    num_resumed_output_tokens: int = 0
    error_counts: Counter[str] = field(default_factory=Counter)
    first_errors: dict[str, FirstError] = field(default_factory=dict)  # by code
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
        self.num_resumed_failed = saved.error_counts.total()
        self.num_failed += self.num_resumed_failed
        self.error_counts.update(saved.error_counts)
        self.num_resumed_prompt_tokens = saved.num_prompt_tokens
        self.num_resumed_output_tokens = saved.num_output_tokens

    def add_row(self, answer: AnswerRow, prompt: str) -> None:
        """Counts a row that is answered or has failed. `prompt` is for the preview."""
        self.num_rows += 1
        if answer.error_code is not None:
            self.num_failed += 1
            self.error_counts[answer.error_code] += 1
            first = self.first_errors.get(answer.error_code)
            if first is None or answer.row_index < first.row_index:
                error = FirstError(answer.row_index, answer.error or "")
                self.first_errors[answer.error_code] = error
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

    def progress(
        self,
        phase: str,
        *,
        placement: str,
        num_rows: int | None,
        num_unfinished: int,
        elapsed_seconds: float,
    ) -> Progress:
        """Returns how far the batch has come.

        Args:
            phase: As in `Progress`.
            placement: As there.
            num_rows: As there.
            num_unfinished: Rows that the engine holds.
            elapsed_seconds: As there.
        """
        num_running = self.num_running if num_unfinished else 0
        return Progress(
            phase=phase,
            placement=placement,
            num_rows=num_rows,
            num_done=self.num_rows,
            num_failed=self.num_failed,
            num_resumed=self.num_resumed - self.num_resumed_failed,
            num_prompt_tokens=self.num_computed_prompt_tokens,
            num_output_tokens=self.num_sampled_tokens,
            num_running=num_running,
            num_waiting=max(num_unfinished - num_running, 0),
            kv_cache_usage=self.kv_cache_usage if num_unfinished else 0.0,
            elapsed_seconds=elapsed_seconds,
        )

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
            first_errors=dict(self.first_errors),
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
        return None if expected is None else value_text(expected)
