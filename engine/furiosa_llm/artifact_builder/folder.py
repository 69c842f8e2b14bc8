"""A folder that appears under its name only when it is complete and on the disk."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from furiosa_llm.artifact.contents import ARTIFACT_FILE, ArtifactFile
from furiosa_llm.artifact.reading import digest_text, new_digest, read_description
from furiosa_llm.dataset.durable import sync_folder, writing
from furiosa_llm.dataset.run_lock import RunLock, is_locked
from furiosa_llm.errors import ConfigError, DatasetError, ModelLoadError

Chunk = bytes | bytearray | memoryview


class FolderWriter:
    """Writes the files of a folder, and keeps their sizes and hashes."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.files: list[ArtifactFile] = []

    def write(
        self, name: str, chunks: Iterable[Chunk], on_bytes: Callable[[int], None] | None = None
    ) -> None:
        """Writes a file and makes it durable.

        Args:
            name: Its path in the folder, with `/`.
            chunks: Its content.
            on_bytes: Called with the size of each chunk that is written.

        Raises:
            DatasetError: It cannot be written.
        """
        path = self.folder / name
        digest, num_bytes = new_digest(), 0
        with writing(path):
            path.parent.mkdir(exist_ok=True)
            with path.open("wb") as file:
                for chunk in chunks:
                    file.write(chunk)
                    digest.update(chunk)
                    num_bytes += len(chunk)
                    if on_bytes is not None:
                        on_bytes(len(chunk))
                file.flush()
                os.fsync(file.fileno())
        self.files.append(ArtifactFile(name=name, num_bytes=num_bytes, hash=digest_text(digest)))


def check_output(output: Path, model: Path, *, overwrite: bool) -> None:
    """Checks before a build that its output may and can be written.

    Raises:
        ConfigError: It is the model, lies in it or holds it.
        DatasetError: Something is there already, or the folder above is missing or not writable.
    """
    own, other = output.resolve(), model.resolve()
    if own == other or other in own.parents:
        raise ConfigError(f"OUT {output} lies in MODEL {model}; choose another folder")
    if own in other.parents:
        raise ConfigError(f"OUT {output} holds MODEL {model}; choose another folder")
    if own.exists():
        _check_replaceable(output, overwrite=overwrite)
    if not own.parent.is_dir():
        raise DatasetError(f"{own.parent} is not an existing folder; create it or choose another")
    if not os.access(own.parent, os.W_OK | os.X_OK):
        raise DatasetError(f"{own.parent}: cannot be written: Permission denied")


@contextlib.contextmanager
def new_folder(output: Path) -> Iterator[FolderWriter]:
    """Gives a hidden folder beside `output`, which becomes `output` if the block ends well.

    A block that raises, also by Ctrl-C, leaves nothing behind. A process that is killed leaves the
    hidden folder, and the next build to the same output takes it away.

    Raises:
        DatasetError: It cannot be written, or another build writes to the same output.
    """
    output = output.resolve()  # a link stays; what it leads to is replaced
    temporary = output.with_name(f".{output.name}.building")
    if is_locked(temporary):
        raise DatasetError(
            f"{output} is being built by another process; wait for its end, or choose another "
            "folder"
        )
    lock = RunLock(temporary)
    with writing(output):
        if temporary.exists():
            shutil.rmtree(temporary)
        temporary.mkdir()
    try:
        with writing(output):
            lock.acquire()
        yield FolderWriter(temporary)
        lock.release()
        with writing(output):
            _sync_all(temporary)
            _put_in_place(temporary, output)
    except BaseException:
        lock.release()
        shutil.rmtree(temporary, ignore_errors=True)
        raise


def _check_replaceable(output: Path, *, overwrite: bool) -> None:
    """Makes sure that nothing but an artifact is ever deleted."""
    if not overwrite:
        raise DatasetError(f"{output} exists already; choose another folder or use --overwrite")
    if not output.is_dir():
        raise DatasetError(f"{output} is a file, not a folder; choose another folder")
    with writing(output):
        found = {
            path.relative_to(output).as_posix()
            for path in output.rglob("*")
            if path.is_symlink() or not path.is_dir()
        }
    if not found:
        return
    try:
        known = {ARTIFACT_FILE, *(file.name for file in read_description(output).files)}
    except ModelLoadError as error:
        raise DatasetError(
            f"{output} is no artifact that could be replaced ({error}); delete it yourself, or "
            "choose another folder"
        ) from error
    strangers = sorted(found - known)
    if strangers:
        raise DatasetError(
            f"{output} holds {strangers[0]!r}, which is no part of the artifact there; move it "
            "away, or choose another folder"
        )


def _sync_all(folder: Path) -> None:
    for path in folder.iterdir():
        if path.is_dir():
            sync_folder(path)
    sync_folder(folder)


def _put_in_place(temporary: Path, output: Path) -> None:
    """Renames the new folder. An old one is moved away first and deleted at the end."""
    replaced = output.with_name(f".{output.name}.replaced")
    if replaced.exists():
        shutil.rmtree(replaced)
    try:
        if output.exists():
            output.rename(replaced)
        temporary.rename(output)
        sync_folder(output.parent)
    except BaseException:
        if not temporary.exists():
            output.rename(temporary)
        if replaced.exists():
            replaced.rename(output)
        raise
    shutil.rmtree(replaced, ignore_errors=True)
