"""Files that appear under their name only when they are complete and on the disk."""

from __future__ import annotations

import contextlib
import errno
import logging
import os
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from furiosa_llm.errors import DatasetError

_TEMPORARY_SUFFIX = ".tmp"

_logger = logging.getLogger(__name__)


@contextlib.contextmanager
def durable_file(path: Path) -> Iterator[BinaryIO]:
    """Opens a new file that gets its name when the block ends without an error.

    Raises:
        DatasetError: It cannot be written.
    """
    temporary = path.with_name(path.name + _TEMPORARY_SUFFIX)
    try:
        with writing(path):
            with temporary.open("wb") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(path)
            sync_folder(path.parent)
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise


@contextlib.contextmanager
def closed_well(resources: contextlib.ExitStack) -> Iterator[None]:
    """Closes resources after the block as if it had ended well, however it ends.

    What ended the block matters more than an error of theirs, which is then only logged.

    Raises:
        DatasetError: They cannot be written, and nothing else ended the block.
    """
    try:
        yield
    except BaseException:
        try:
            resources.close()
        except DatasetError as error:
            _logger.warning("%s", error)
        raise
    resources.close()


def sync_folder(folder: Path) -> None:
    """Makes the names in a folder durable."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno != errno.EINVAL:  # a file system that cannot, such as some network ones
            raise
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turns the operating system's errors into one that names the path.

    Raises:
        DatasetError: The block raised OSError.
    """
    try:
        yield
    except OSError as error:
        reason = error.strerror or str(error)
        raise DatasetError(f"{path}: cannot be written: {reason}") from error
