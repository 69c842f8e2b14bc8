"""The standard streams of the process: closed ones, and an output that cannot be written."""

from __future__ import annotations

import contextlib
import io
import os
import sys
from collections.abc import Iterator

import click


class _OutputError(OSError):
    """Standard output cannot be written: no bug, as another OSError may be."""


class _OutputFile(io.FileIO):
    def write(self, data: object) -> int:
        try:
            return super().write(data)  # type: ignore[arg-type]  # whatever a buffer hands on
        except BrokenPipeError:
            raise
        except OSError as error:
            raise _OutputError(error.errno, error.strerror) from error


def prepare_streams() -> None:
    """Opens what was closed before the start, and has standard output tell of its errors.

    Else the next file that is opened gets the number of a closed stream, and the words of a library
    land in it. What is written to a closed standard error goes nowhere; standard output fails.
    """
    for number, flags in enumerate((os.O_RDONLY, os.O_RDONLY, os.O_WRONLY)):
        try:
            os.fstat(number)
        except OSError:
            os.set_inheritable(os.open(os.devnull, flags), True)  # the lowest number that is free
    if sys.stderr is None:
        raw = io.FileIO(2, "w", closefd=False)
        sys.stderr = io.TextIOWrapper(raw, encoding="utf-8", errors="backslashreplace")
    output = sys.stdout
    if output is not None:
        output.flush()
    sys.stdout = io.TextIOWrapper(
        io.BufferedWriter(_OutputFile(1, "w", closefd=False)),
        encoding="utf-8" if output is None else output.encoding,
        errors="strict" if output is None else output.errors,
        line_buffering=bool(output and output.line_buffering),
    )


@contextlib.contextmanager
def ending_without_output(exit_code: int) -> Iterator[None]:
    """Ends the program when standard output cannot be written.

    Raises:
        ClickException: It cannot; the message says why.
        Exit: Its reader is gone, and needs no words.
    """
    try:
        yield
    except (BrokenPipeError, _OutputError) as error:
        # Python must not fail again when it flushes.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        if isinstance(error, BrokenPipeError):
            raise click.exceptions.Exit(exit_code) from None
        failure = click.ClickException(f"standard output cannot be written: {error.strerror}")
        failure.exit_code = exit_code  # type: ignore[misc]  # Click's own way to set it
        raise failure from error
