"""Shows how a run goes on: live in a terminal, in a plain line now and then elsewhere.

A display is told of every engine step, up to a thousand a second: it looks at few of them.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from types import TracebackType
from typing import TYPE_CHECKING, Protocol, Self

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.spinner import Spinner
from rich.table import Table
from rich.text import Text

from furiosa_llm_cli.formats import count, duration
from furiosa_llm_cli.options import Verbosity
from furiosa_llm_cli.progress_view import ProgressTracker, ProgressView
from furiosa_llm_cli.terminal import StderrConsole, is_live_terminal, say

if TYPE_CHECKING:
    from furiosa_llm.batch.summary import Progress

Clock = Callable[[], float]

_PLAIN_INTERVAL_SECONDS = 5.0
_LIVE_INTERVAL_SECONDS = 0.125
_REFRESHES_PER_SECOND = 4
_LOADING, _ANSWERING, _WRITING = "loading", "answering", "writing"
_FIRST_START = "the first start compiles kernels"
_FIRST_START_SECONDS = 6.0  # what others take at most with a small model
_PHASE_TEXTS = {_LOADING: "loading the model", _WRITING: "writing the output"}


class ProgressDisplay(Protocol):
    """What a command shows progress with. It is used as a context manager."""

    def __enter__(self) -> Self:
        """Starts with the phase `loading`."""

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Leaves the terminal as it was."""

    def update(self, progress: Progress) -> None:
        """Takes note of how far the run has come."""


class SilentDisplay:
    """Shows nothing."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        """Has nothing to take away."""

    def update(self, progress: Progress) -> None:
        """Does nothing."""


class PlainDisplay:
    """Writes a line at the start of each phase, and every few seconds while rows are answered."""

    def __init__(
        self,
        write: Callable[[str], None] = say,
        *,
        clock: Clock = time.monotonic,
        interval_seconds: float = _PLAIN_INTERVAL_SECONDS,
    ) -> None:
        self._write = write
        self._clock = clock
        self._interval_seconds = interval_seconds
        self._tracker = ProgressTracker()
        self._phase = ""
        self._next_line_at = 0.0

    def __enter__(self) -> Self:
        self._start(_LOADING, _PHASE_TEXTS[_LOADING])
        return self

    def __exit__(self, *_: object) -> None:
        """Has nothing to take away."""

    def update(self, progress: Progress) -> None:
        """Writes a line if it is time for one."""
        now = self._clock()
        if progress.phase != self._phase:
            self._next_line_at = now + self._interval_seconds
            self._tracker.view(progress, now)  # the rates count from here
            self._start(progress.phase, _phase_text(progress))
        elif progress.phase == _ANSWERING and now >= self._next_line_at:
            self._next_line_at = now + self._interval_seconds
            self._write(_plain_line(self._tracker.view(progress, now), now))

    def _start(self, phase: str, text: str) -> None:
        self._phase = phase
        if text:
            self._write(text)


class LiveDisplay:
    """Draws a few lines in a terminal over and over, and takes them away at the end."""

    def __init__(self, console: Console | None = None, *, clock: Clock = time.monotonic) -> None:
        self._clock = clock
        self._tracker = ProgressTracker()
        self._view: ProgressView | None = None
        self._phase = _LOADING
        self._phase_start = clock()
        self._next_sample_at = 0.0
        self._spinner = Spinner("dots", style="cyan")
        self._live = Live(
            get_renderable=self.render,
            console=console or StderrConsole(),
            # A thread draws, so that time goes on also in a long step and while libraries load.
            refresh_per_second=_REFRESHES_PER_SECOND,
            transient=True,
        )

    def __enter__(self) -> Self:
        self._phase_start = self._clock()
        self._live.start()
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._live.stop()

    def update(self, progress: Progress) -> None:
        """Takes a sample, eight times a second at most. Drawing is left to the thread."""
        now = self._clock()
        if progress.phase == self._phase and now < self._next_sample_at:
            return
        self._next_sample_at = now + _LIVE_INTERVAL_SECONDS
        if progress.phase != self._phase:
            self._phase_start = now
        # The thread sees one whole view or the other, never half of one.
        self._view = self._tracker.view(progress, now)
        self._phase = progress.phase

    def render(self) -> RenderableType:
        """Returns what is to be drawn now."""
        now, view = self._clock(), self._view
        if view is None or self._phase != _ANSWERING:
            if self._phase not in _PHASE_TEXTS:
                return Text()
            seconds = now - self._phase_start
            is_long = self._phase == _LOADING and seconds > _FIRST_START_SECONDS
            hint = f"  ({_FIRST_START})" if is_long else ""
            text = f"{_PHASE_TEXTS[self._phase]}  {duration(seconds)}{hint}"
            self._spinner.update(text=text)
            return self._spinner
        return Group(
            _bar_line(view), _dim_line(view.load_texts()), _dim_line(view.queue_texts(now))
        )


def choose_display(verbosity: Verbosity) -> ProgressDisplay:
    """Returns the display for this standard error."""
    if verbosity.is_quiet:
        return SilentDisplay()
    # Log lines and a live display would overwrite each other.
    return LiveDisplay() if is_live_terminal() and not verbosity.level else PlainDisplay()


def _phase_text(progress: Progress) -> str:
    if progress.phase == _ANSWERING:
        rows = f" {count(progress.num_rows)} rows" if progress.num_rows else ""
        return f"answering{rows}" + (f" with {progress.placement}" if progress.placement else "")
    return _PHASE_TEXTS.get(progress.phase, "")


def _plain_line(view: ProgressView, now: float) -> str:
    num_failed = view.progress.num_failed
    failed = [f"{count(num_failed)} failed"] if num_failed else []
    return ", ".join([view.rows_text, *failed, *view.load_texts(), *view.queue_texts(now)])


def _dim_line(texts: list[str]) -> Text:
    return Text("   ".join(texts), style="dim", no_wrap=True, overflow="ellipsis")


def _bar_line(view: ProgressView) -> RenderableType:
    """The rows done, and a bar as wide as there is room if it is known how many there are."""
    progress = view.progress
    rows = Text(view.rows_text, no_wrap=True, overflow="ellipsis")
    if progress.num_failed:
        rows.append(f"   {count(progress.num_failed)} failed", style="bold red")
    if not progress.num_rows:
        return rows
    line = Table.grid(padding=(0, 2, 0, 0), expand=True)
    line.add_column(ratio=1)
    line.add_column(no_wrap=True)
    line.add_row(ProgressBar(total=progress.num_rows, completed=progress.num_done), rows)
    return line
