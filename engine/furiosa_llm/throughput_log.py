"""Logs how fast an engine works, for callers that show nothing of their own."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence

from furiosa_llm.outputs import StepStats

_logger = logging.getLogger(__name__)

_INTERVAL_SECONDS = 10.0


class ThroughputLog:
    """Writes a line to the log every ten seconds while steps are run."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._last: dict[int, StepStats] = {}  # by replica
        self._started_at: float | None = None  # of what is counted; None before the first step
        self._num_prompt_tokens = 0
        self._num_output_tokens = 0

    def note(self, steps: Sequence[StepStats], *, num_unfinished: int) -> None:
        """Counts steps.

        Args:
            steps: Those that just ended.
            num_unfinished: Prompts whose answers are not complete; with none the count ends.
        """
        now = self._clock()
        if self._started_at is None:
            self._started_at = now
        for step in steps:
            self._last[step.replica] = step
            self._num_prompt_tokens += step.num_prefill_tokens + step.num_cached_tokens
            self._num_output_tokens += step.num_sampled_tokens
        if now - self._started_at >= _INTERVAL_SECONDS:
            self._write(now - self._started_at, num_unfinished)
            self._begin(now)
        if not num_unfinished:
            self._begin(None)

    def _begin(self, now: float | None) -> None:
        self._started_at = now
        self._num_prompt_tokens = self._num_output_tokens = 0

    def _write(self, seconds: float, num_unfinished: int) -> None:
        steps = self._last.values()
        num_running = sum(step.num_running for step in steps)
        num_used = sum(step.num_used_blocks for step in steps)
        num_blocks = num_used + sum(step.num_free_blocks for step in steps)
        _logger.info(
            "prompts: %.1f tokens/s, answers: %.1f tokens/s, running: %d, waiting: %d, "
            "unfinished prompts: %d, KV cache: %.1f %%",
            self._num_prompt_tokens / seconds,
            self._num_output_tokens / seconds,
            num_running,
            sum(step.num_waiting for step in steps),
            num_unfinished,
            100 * num_used / max(num_blocks, 1),
        )
