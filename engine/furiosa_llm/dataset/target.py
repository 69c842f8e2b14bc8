"""Where the output goes, and whether it may go there."""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from furiosa_llm.dataset.durable import writing
from furiosa_llm.errors import ConfigError, DatasetError
from furiosa_llm.paths import is_folder, is_there

FOLDER_MANIFEST = "_manifest.json"
PARTS_SUFFIX = ".parts"

_OWN_FILE = re.compile(r"part-\d+\.parquet|_manifest\.json")

_OTHER_FORMATS = frozenset(
    {".json", ".jsonl", ".ndjson", ".csv", ".tsv", ".txt", ".xlsx", ".arrow", ".feather"}
    | {".gz", ".zst", ".bz2", ".xz", ".zip"}
)


@dataclass(frozen=True, slots=True, kw_only=True)
class OutputTarget:
    """Where the output goes.

    Attributes:
        path: The file, or the folder.
        is_folder: Whether it is a folder of several files.
    """

    path: Path
    is_folder: bool

    @classmethod
    def of(cls, output: str | Path) -> OutputTarget:
        """Reads the user's words: a trailing slash or an existing folder asks for a folder."""
        path = Path(output)
        with writing(path):
            if path.is_symlink():
                path = _resolved(path)  # the link stays; what it leads to is replaced
        is_slashed = str(output).endswith(("/", os.sep))
        return cls(path=path, is_folder=is_slashed or is_folder(path))

    @property
    def parts_folder(self) -> Path:
        """Where finished rows wait for the end of the run."""
        return self.path.with_name(self.path.name + PARTS_SUFFIX)

    @property
    def status_path(self) -> Path:
        """What a watcher of the run looks at."""
        return self.path.with_name(self.path.name + ".status.json")

    @property
    def has_earlier_run(self) -> bool:
        """Whether a run has left anything: its output, its parts, or how it ended."""
        if any(is_there(path) for path in (self.parts_folder, self.status_path)):
            return True
        if not is_folder(self.path):
            return is_there(self.path)
        with writing(self.path):
            return any(self.path.iterdir())

    def purpose_of(self, path: Path) -> str | None:
        """Tells what a run needs a path for; None if it may be another file."""
        path, output = _resolved(path), _resolved(self.path)
        parts, status = _resolved(self.parts_folder), _resolved(self.status_path)
        if is_same_file(path, output):
            return "the output"
        if path in (status, status.with_name(status.name + ".tmp")):
            return "the file that tells how far the run is"
        if path == parts or parts in path.parents:
            return f"among the finished rows in {self.parts_folder}"
        if self.is_folder and output in path.parents:
            return f"among the files of the output {self.path}"
        return None


def check_output(output: str | Path, inputs: Iterable[Path], *, overwrite: bool) -> OutputTarget:
    """Checks before a run that its output may and can be written.

    Args:
        output: What the user wrote.
        inputs: The files of the input.
        overwrite: Whether an earlier output may be there.

    Raises:
        ConfigError: The output is one of the inputs, or the folder of one, or has the name of a
            file of another format.
        DatasetError: Something is there already, or the folder is missing or not writable.
    """
    target = OutputTarget.of(output)
    if str(output) == "-":
        raise ConfigError("--output - is not possible: Parquet cannot be streamed; name a file")
    if target.path.name in ("", ".."):
        raise ConfigError(f"--output {output} has no name of its own; name a file or a new folder")
    for path in inputs:
        _check_input(path, target)
    name = Path(output)
    if name.suffix.lower() in _OTHER_FORMATS and not target.is_folder:
        stem = str(name.with_suffix("")).removesuffix(".parquet")
        raise ConfigError(
            f"--output {output} would hold Parquet, which is not what {name.suffix} promises; give "
            f"it a name such as {stem}.parquet"
        )
    check_replaceable(target, overwrite=overwrite)
    check_parent(target.path.parent)
    return target


def _check_input(path: Path, target: OutputTarget) -> None:
    if is_same_file(path, target.path):
        raise ConfigError(f"--output {target.path} is an input, too; choose another output")
    if target.is_folder and _resolved(target.path) in _resolved(path).parents:
        raise ConfigError(f"--output {target.path} holds the input {path}; choose another folder")


def _resolved(path: Path) -> Path:
    try:
        return path.resolve()
    except (OSError, RuntimeError) as error:  # Python 3.11 and 3.12 raise the second for a loop
        raise DatasetError(f"{path} cannot be found: {error}; choose another file") from error


def is_same_file(first: Path, second: Path) -> bool:
    """Tells whether two paths lead to one file, which need not be there.

    Raises:
        DatasetError: One of them leads nowhere, as a link to itself.
    """
    if _resolved(first) == _resolved(second):
        return True
    try:
        return first.samefile(second)
    except OSError:
        return False


def check_replaceable(target: OutputTarget, *, overwrite: bool) -> None:
    """Checks that nothing but an earlier output of this program would be replaced.

    Raises:
        DatasetError: Something else is there, or anything at all without `overwrite`.
    """
    path = target.path
    if not is_there(path):
        return
    if not path.is_file() and not path.is_dir():
        raise DatasetError(f"{path} is neither a file nor a folder; choose another output")
    if path.is_file() and target.is_folder:
        raise DatasetError(f"{path} is a file, not a folder; choose another output")
    with writing(path):
        names = sorted(entry.name for entry in path.iterdir()) if path.is_dir() else []
    strangers = [name for name in names if not _OWN_FILE.fullmatch(name)]
    if strangers:
        raise DatasetError(
            f"{path} holds files that are no output of this program ({strangers[0]!r}); "
            "choose an empty or a new folder"
        )
    if not overwrite and (names or path.is_file()):
        raise DatasetError(f"{path} exists already; choose another output or use --overwrite")


def check_parent(parent: Path) -> None:
    """Checks that files can be made in a folder.

    Raises:
        DatasetError: It is missing, or not writable.
    """
    if not is_folder(parent):
        raise DatasetError(f"{parent} is not an existing folder; create it or choose another")
    if not os.access(parent, os.W_OK | os.X_OK):
        is_read_only = os.statvfs(parent).f_flag & os.ST_RDONLY
        reason = os.strerror(errno.EROFS if is_read_only else errno.EACCES)
        raise DatasetError(f"{parent}: cannot be written: {reason}")
