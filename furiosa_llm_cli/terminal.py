"""Where words go: standard error, a terminal, a file, or what cannot be written any more."""

from __future__ import annotations

import importlib
import logging
import os
import sys

import click
from rich.console import Console

from furiosa_llm.dataset.redaction import redacted_text

_LOG_FORMAT = "%(asctime)s %(levelname)s %(name)s: %(message)s"


class StderrConsole(Console):
    """A console on standard error that falls silent when it cannot be written any more.

    A run of hours must not end because its terminal was closed, or the disk of its log is full.
    """

    def __init__(self) -> None:
        super().__init__(stderr=True, highlight=False)

    def on_broken_pipe(self) -> None:
        """Goes on without output."""
        self.quiet = True
        silence_stderr()

    def _check_buffer(self) -> None:
        try:
            super()._check_buffer()
        except OSError:  # rich itself knows only pipes
            self.on_broken_pipe()


def is_live_terminal() -> bool:
    """Whether standard error is a terminal in which lines can be drawn over."""
    # Not rich's own test: FORCE_COLOR makes it take a log file for a terminal.
    if sys.stderr is None or not sys.stderr.isatty():
        return False
    return os.environ.get("TERM", "") not in ("", "dumb", "unknown")


def say(text: str) -> None:
    """Writes a line to standard error, if that is possible."""
    try:
        click.echo(redacted_text(text), err=True)
    except OSError:
        silence_stderr()


def silence_stderr() -> None:
    """Sends what else is written to standard error nowhere."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stderr.fileno())


class _RedactingFormatter(logging.Formatter):
    """Writes messages without passwords and the like."""

    def format(self, record: logging.LogRecord) -> str:
        """Returns the line of a message."""
        return redacted_text(super().format(record))


def show_logs(level: int) -> None:
    """Sends the engine's messages to standard error: its own for 1, everyone's for 2 or more."""
    if logging.lastResort is not None:  # writes warnings where no log was asked for
        logging.lastResort.setFormatter(_RedactingFormatter())
    importlib.import_module("huggingface_hub.utils.logging")  # sets up its logger, if not now later
    hub = logging.getLogger("huggingface_hub")
    if level < 1:
        hub.setLevel(logging.ERROR)  # it warns of each retry, and then there is an error anyway
        return
    hub.handlers.clear()  # else its messages come twice
    handler = logging.StreamHandler()
    handler.setFormatter(_RedactingFormatter(_LOG_FORMAT, datefmt="%H:%M:%S"))
    logging.basicConfig(handlers=[handler], level=logging.WARNING)
    logging.getLogger("furiosa_llm").setLevel(logging.INFO if level == 1 else logging.DEBUG)
    if level > 1:
        logging.getLogger().setLevel(logging.INFO)
