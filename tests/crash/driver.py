"""Runs the command line, and kills its own process at the n-th change of the file system.

    python driver.py N before|after ARGUMENTS...

Changes are what makes a state durable or visible: locks, fsyncs, renames, removals and new folders.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import signal
import sys
from collections.abc import Callable
from types import ModuleType
from typing import Any

_CHANGES: tuple[tuple[ModuleType, str], ...] = (
    (os, "fsync"),
    (os, "mkdir"),
    (os, "rename"),
    (os, "replace"),
    (os, "rmdir"),
    (os, "unlink"),
    (fcntl, "flock"),
    (shutil, "rmtree"),
)


class _Bomb:
    """Counts changes and goes off at one of them."""

    def __init__(self, number: int, *, goes_off_after: bool) -> None:
        self._left = number
        self._goes_off_after = goes_off_after

    def wrap(self, change: Callable[..., Any]) -> Callable[..., Any]:
        def changed(*args: Any, **kwargs: Any) -> Any:
            self._left -= 1
            if self._left == 0 and not self._goes_off_after:
                os.kill(os.getpid(), signal.SIGKILL)
            result = change(*args, **kwargs)
            if self._left == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            return result

        return changed


def main() -> None:
    number, place, *arguments = sys.argv[1:]
    bomb = _Bomb(int(number), goes_off_after=place == "after")
    for module, name in _CHANGES:
        setattr(module, name, bomb.wrap(getattr(module, name)))
    sys.argv = ["furiosa-llm", *arguments]
    from furiosa_llm_cli.main import cli

    cli()


if __name__ == "__main__":
    main()
