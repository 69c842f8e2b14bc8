"""Writes answers on a file system that fails.

    python -m tests.crash.faults FAULT N OUTPUT

From its N-th call on, an operation on the run's own files fails, as told by FAULT.
"""

from __future__ import annotations

import errno
import io
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from furiosa_llm.dataset.manifest import Manifest
from furiosa_llm.dataset.run_start import Resume
from furiosa_llm.dataset.writer import AnswerWriter
from furiosa_llm.errors import DatasetError
from tests.unit.dataset.dataset_factories import make_answer

NUM_ROWS = 40
JOB = Manifest(model="tiny", identity={"model": "tiny"})


class _Countdown:
    """Fails with an error of the operating system from the n-th time on."""

    def __init__(self, number: int, error: int) -> None:
        self._left = number
        self._error = error

    def count(self) -> None:
        self._left -= 1
        if self._left <= 0:
            raise OSError(self._error, os.strerror(self._error))


class _FailingFile(io.FileIO):
    """A file whose writes fail, or take only some of the bytes."""

    countdown: _Countdown
    max_bytes: int

    def write(self, data: Any) -> int:
        self.countdown.count()
        return super().write(memoryview(data).cast("B")[: self.max_bytes])


def _break_writes(countdown: _Countdown, *, max_bytes: int = sys.maxsize) -> None:
    _FailingFile.countdown, _FailingFile.max_bytes = countdown, max_bytes
    real_open = io.open

    def opened(file: Any, mode: str = "r", *args: Any, **kwargs: Any) -> Any:
        if mode == "wb" and ".parts" in str(file):
            return io.BufferedWriter(_FailingFile(file, "w"))
        return real_open(file, mode, *args, **kwargs)

    io.open = opened


def _break_calls(countdown: _Countdown, name: str) -> None:
    real = getattr(os, name)

    def call(*args: Any) -> Any:
        countdown.count()
        return real(*args)

    setattr(os, name, call)


def main() -> None:
    fault, number, output = sys.argv[1:]
    match fault:
        case "ENOSPC":
            _break_writes(_Countdown(int(number), errno.ENOSPC))
        case "EIO":
            _break_writes(_Countdown(int(number), errno.EIO))
        case "short":
            _break_writes(_Countdown(sys.maxsize, errno.EIO), max_bytes=777)
        case _:
            _break_calls(_Countdown(int(number), errno.EIO), fault)
    try:
        print(*write_all(Path(output)))  # noqa: T201
    except DatasetError as error:
        print(error)  # noqa: T201
        sys.exit(4)


def write_all(output: Path) -> list[int]:
    """Writes the rows that are not there yet, and returns their indexes."""

    def carried() -> Iterator[dict[str, object]]:
        return iter([{}] * NUM_ROWS)

    with AnswerWriter(
        output, manifest=JOB, resume=Resume(carried=carried), rows_per_part=4
    ) as writer:
        left = [index for index in range(NUM_ROWS) if index not in writer.saved.done]
        for index in left:
            writer.write(make_answer(index))
        writer.finish({})
    return left


if __name__ == "__main__":
    main()
