"""What a display shows of a run's progress: rates over the last seconds, and the time left."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING

from furiosa_llm_cli.formats import count, duration, percent, rate

if TYPE_CHECKING:
    from furiosa_llm.batch.summary import Progress

_WINDOW_SECONDS = 10.0
_MIN_SECONDS_FOR_ESTIMATE = 3.0
_MIN_SHARE_FOR_ESTIMATE = 0.01


@dataclass(frozen=True, slots=True, kw_only=True)
class ProgressView:
    """A moment of a run.

    Attributes:
        progress: As the engine told it.
        seen_at: The clock's time when it did.
        prompt_rate: Prompt tokens per second, lately.
        output_rate: Output tokens per second, lately.
    """

    progress: Progress
    seen_at: float
    prompt_rate: float = 0.0
    output_rate: float = 0.0

    def elapsed_seconds(self, now: float) -> float:
        """Seconds of answering; it grows also while the engine is busy and says nothing."""
        return self.progress.elapsed_seconds + now - self.seen_at

    def seconds_left(self, now: float) -> float | None:
        """Seconds until all rows are done if they go on as before; None where no one knows."""
        progress, elapsed = self.progress, self.elapsed_seconds(now)
        num_answered = progress.num_done - progress.num_failed - progress.num_resumed
        if not progress.num_rows or elapsed < _MIN_SECONDS_FOR_ESTIMATE:
            return None
        if num_answered <= _MIN_SHARE_FOR_ESTIMATE * progress.num_rows:
            return None
        # Those that run are half done on average. A failed row took no time worth counting.
        work_done = num_answered + progress.num_running / 2
        num_to_answer = progress.num_rows - progress.num_failed - progress.num_resumed
        work = max(num_to_answer, work_done)
        return max(progress.elapsed_seconds * work / work_done - elapsed, 0.0)

    @property
    def rows_text(self) -> str:
        """Returns `34 of 80 rows (42.5 %)`."""
        progress = self.progress
        if not progress.num_rows:
            return f"{count(progress.num_done)} rows"
        share = percent(progress.num_done / progress.num_rows)
        return f"{count(progress.num_done)} of {count(progress.num_rows)} rows ({share})"

    def load_texts(self) -> list[str]:
        """Returns how fast the engine is, and how full."""
        return [
            f"{rate(self.prompt_rate)} tokens/s in",
            f"{rate(self.output_rate)} tokens/s out",
            f"KV cache {100 * self.progress.kv_cache_usage:.0f} % full",
        ]

    def queue_texts(self, now: float) -> list[str]:
        """Returns how much is under way, and how long it takes."""
        texts = [
            f"{count(self.progress.num_running)} running",
            f"{count(self.progress.num_waiting)} waiting",
            duration(self.elapsed_seconds(now)),
        ]
        left = self.seconds_left(now)
        return texts if left is None else [*texts, f"about {duration(left)} left"]


class ProgressTracker:
    """Keeps the last seconds of a run, from which the rates come."""

    def __init__(self, window_seconds: float = _WINDOW_SECONDS) -> None:
        self._window_seconds = window_seconds
        self._samples: deque[tuple[float, int, int]] = deque()

    def view(self, progress: Progress, now: float) -> ProgressView:
        """Takes a sample and returns the moment as it is to be shown."""
        samples = self._samples
        samples.append((now, progress.num_prompt_tokens, progress.num_output_tokens))
        # One sample stays that is older than the window, so that the window is always covered.
        while len(samples) > 2 and samples[1][0] <= now - self._window_seconds:
            samples.popleft()
        start, num_prompt_tokens, num_output_tokens = samples[0]
        seconds = now - start
        if seconds <= 0:
            return ProgressView(progress=progress, seen_at=now)
        return ProgressView(
            progress=progress,
            seen_at=now,
            prompt_rate=(progress.num_prompt_tokens - num_prompt_tokens) / seconds,
            output_rate=(progress.num_output_tokens - num_output_tokens) / seconds,
        )
