"""Files that a run writes beside its output, and whether they may be written."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from furiosa_llm.dataset.target import OutputTarget, check_parent, is_same_file
from furiosa_llm.errors import ConfigError, DatasetError
from furiosa_llm.paths import is_folder, is_there

_MAX_LINE_BYTES = 1 << 24
_STEP_COLUMNS = ("replica", "step", "schedule_ms", "model_ms")  # of any version


@dataclass(frozen=True, slots=True, kw_only=True)
class SideFile:
    """A file that a run writes beside its output.

    Attributes:
        option: That names it.
        path: Of the file.
        content: What it holds, for people.
        is_such: Tells of a file that is there whether it holds such content.
    """

    option: str
    path: Path
    content: str
    is_such: Callable[[Path], bool]

    @classmethod
    def of_failed_rows(cls, path: Path) -> SideFile:
        """The rows that failed, as JSON lines."""
        return cls(option="--failed-rows", path=path, content="JSON lines", is_such=_is_json_lines)

    @classmethod
    def of_step_stats(cls, path: Path) -> SideFile:
        """The account of the steps, as Parquet."""
        return cls(
            option="--step-stats", path=path, content="Parquet of steps", is_such=_is_step_stats
        )

    @classmethod
    def of_json(cls, path: Path) -> SideFile:
        """What was measured, as JSON."""
        return cls(option="--json", path=path, content="JSON", is_such=_is_json)


def check_side_files(
    files: Sequence[SideFile],
    inputs: Iterable[Path],
    output: OutputTarget | None,
    *,
    overwrite: bool,
) -> None:
    """Checks before a run that the files beside the output may and can be written.

    Args:
        files: Those that are asked for.
        inputs: The files of the input.
        output: Where the answers go; None where there are none to be kept.
        overwrite: Whether files of the same content may be replaced.

    Raises:
        ConfigError: One is the output or what a run keeps beside it, one of the inputs, or
            another of them, or has no name.
        DatasetError: One exists already, or its folder is missing or not writable.
    """
    taken = [("an input", path) for path in inputs]
    for file in files:
        path = file.path
        if str(path) == "-":
            raise ConfigError(f"{file.option} - is not possible; name a file")
        purpose = None if output is None else output.purpose_of(path)
        for what, other in taken:
            if is_same_file(path, other):
                purpose = what
        if purpose is not None:
            raise ConfigError(f"{file.option} {path} is {purpose}, too; choose another file")
        taken.append((f"the file of {file.option}", path))
        if is_folder(path):
            raise DatasetError(f"{path} is a folder; name a file")
        if is_there(path):
            _check_replaceable(file, overwrite=overwrite)
        check_parent(path.parent)


def _check_replaceable(file: SideFile, *, overwrite: bool) -> None:
    path = file.path
    if not overwrite:
        raise DatasetError(f"{path} exists already; choose another file or use --overwrite")
    is_new = not path.is_file() or path.stat().st_size == 0  # a pipe or /dev/null takes anything
    if not is_new and not file.is_such(path):
        raise DatasetError(
            f"{path} holds no {file.content}, which alone {file.option} replaces; choose another "
            "file"
        )


def _is_json_lines(path: Path) -> bool:
    try:
        with path.open("rb") as file:
            return isinstance(json.loads(file.readline(_MAX_LINE_BYTES)), dict)
    except (OSError, ValueError):
        return False


def _is_json(path: Path) -> bool:
    try:
        return isinstance(json.loads(path.read_bytes()), dict)
    except (OSError, ValueError):
        return False


def _is_step_stats(path: Path) -> bool:
    try:
        return set(_STEP_COLUMNS) <= set(pq.read_schema(path).names)
    except (OSError, pa.ArrowException):
        return False
