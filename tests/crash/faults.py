"""Writes answers on a file system that fails.

    python -m tests.crash.faults FAULT N OUTPUT

From its N-th call on, an operation on the run's own files fails, as told by FAULT.
"""

from __future__ import annotations

import errno
import io
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from furiosa_llm.dataset.manifest import Manifest
from furiosa_llm.dataset.run_start import Resume
from furiosa_llm.dataset.writer import AnswerWriter
from furiosa_llm.errors import DatasetError
from tests.unit.dataset.dataset_factories import make_answer

NUM_ROWS = 40
JOB = Manifest(model="tiny", identity={"model": "tiny"})

_REAL_OPEN = io.open
_REAL_FSYNC = os.fsync
_REAL_REPLACE = os.replace


class _Counter:
    def __init__(self, number: int) -> None:
        self._left = number

    def is_due(self) -> bool:
        self._left -= 1
        return self._left <= 0


class _FailingFile(io.FileIO):
    """A file whose writes fail, or take only some of the bytes."""

    write_bytes: Callable[[_FailingFile, Any], int]

    def write(self, data: Any) -> int:
        return type(self).write_bytes(self, data)


def _fail(number: int) -> OSError:
    return OSError(number, os.strerror(number))


def _patch_writes(write_bytes: Callable[[_FailingFile, Any], int]) -> None:
    _FailingFile.write_bytes = write_bytes

    def opened(file: Any, mode: str = "r", *args: Any, **kwargs: Any) -> Any:
        if mode == "wb" and ".parts" in str(file):
            return io.BufferedWriter(_FailingFile(file, "w"))
        return _REAL_OPEN(file, mode, *args, **kwargs)

    io.open = opened


def main() -> None:
    fault, number, output = sys.argv[1:]
    counter = _Counter(int(number))

    def full(file: _FailingFile, data: Any) -> int:
        if counter.is_due():
            raise _fail(errno.ENOSPC)
        return io.FileIO.write(file, data)

    def broken(file: _FailingFile, data: Any) -> int:
        if counter.is_due():
            raise _fail(errno.EIO)
        return io.FileIO.write(file, data)

    def short(file: _FailingFile, data: Any) -> int:
        return io.FileIO.write(file, memoryview(data).cast("B")[:777])

    def fsync(descriptor: int) -> None:
        if counter.is_due():
            raise _fail(errno.EIO)
        _REAL_FSYNC(descriptor)

    def replace(source: Any, target: Any, **kwargs: Any) -> None:
        if ".parts" in str(target) and counter.is_due():
            raise _fail(errno.EIO)
        _REAL_REPLACE(source, target, **kwargs)

    match fault:
        case "ENOSPC":
            _patch_writes(full)
        case "EIO":
            _patch_writes(broken)
        case "short":
            _patch_writes(short)
        case "fsync":
            os.fsync = fsync
        case "rename":
            os.replace = replace
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
