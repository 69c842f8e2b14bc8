"""What goes wrong in reading Parquet, in one line."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa

from furiosa_llm.errors import DatasetError


@contextlib.contextmanager
def reading(
    path: Path, what: str, *, errors: tuple[type[Exception], ...] = (OSError, pa.ArrowException)
) -> Iterator[None]:
    """Tells of a file that cannot be read in the block.

    Args:
        path: The file.
        what: That it is read as.
        errors: What reading it raises.

    Raises:
        DatasetError: One of them was raised.
    """
    try:
        yield
    except errors as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise DatasetError(f"{path}: cannot be read as {what}: {reason}") from error
