"""What this program does to its own process, so that it starts and ends quickly."""

from __future__ import annotations

import atexit
import contextlib
import os
import sys
from dataclasses import dataclass
from importlib.abc import MetaPathFinder

import click

from furiosa_llm.library_imports.quick_torch import hasten_torch
from furiosa_llm.library_imports.quick_transformers import hasten_transformers


@dataclass(frozen=True, slots=True)
class OwnProcess:
    """Stands in the context of a command that has the process to itself, as no test has."""


def prepare_libraries(ctx: click.Context, cache_dir: str | None) -> None:
    """Settles how large libraries are to be loaded. Call it before the first of them.

    Threads that wait for work sleep instead of spinning, unless OMP_WAIT_POLICY says otherwise;
    it is read when torch is loaded. Spinning threads keep a core from the thread that they wait
    for: on two cores beside two busy processes, a model of 135 million parameters was 5.7 times
    slower with them, and on a quiet machine not faster.

    Args:
        ctx: Of the command.
        cache_dir: Folder for what takes long to find out; None for none.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    if ctx.find_object(OwnProcess) is not None:
        hasten_torch()
        hasten_transformers(cache_dir)


def leave_pandas_out(ctx: click.Context) -> None:
    """Lets pyarrow do without pandas, as it does where there is none.

    It asks for pandas when it makes its first array, which takes 0.2 s, and never needs it for
    what this program writes. What does need it later, asks again.
    """
    if ctx.find_object(OwnProcess) is None or "pandas" in sys.modules:
        return
    import pyarrow

    finder = _NoPandas()
    sys.meta_path.insert(0, finder)
    try:
        pyarrow.array([])
    finally:
        sys.meta_path.remove(finder)


class _NoPandas(MetaPathFinder):
    """Says that there is no pandas."""

    def find_spec(self, fullname: str, *_: object) -> None:
        if fullname == "pandas":
            raise ModuleNotFoundError("pandas is not asked for", name="pandas")


class QuickEnd:
    """Ends the process once all that wants to be done at its end is done.

    Python would free every object one by one first, which takes 0.4 s with torch loaded. Make this
    before large libraries are loaded: what is registered first is called last.
    """

    def __init__(self) -> None:
        self._code: int | None = None
        atexit.register(self._end)

    def expect(self, code: object) -> None:
        """Takes note of the exit code; without one, Python ends the process as ever."""
        if code is None or isinstance(code, int):
            self._code = code or 0

    def _end(self) -> None:
        if self._code is None:
            return
        with contextlib.suppress(OSError, ValueError):  # then Python meets the same, and tells
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(self._code)
