"""About how many rows an input has, without reading it."""

from __future__ import annotations

from pathlib import Path

from furiosa_llm.dataset.jsonl import GZIP_SUFFIX, ZSTD_SUFFIX
from furiosa_llm.dataset.reader import RowSource

_SAMPLE_BYTES = 2**16
_COMPRESSION = 4  # what packed text typically shrinks by


def estimate_num_rows(source: RowSource) -> int | None:
    """Returns the number of rows, or what the sizes of the files and the first lines suggest.

    Returns:
        None for standard input, pipes and named datasets, and for files that cannot be read.
    """
    if source.num_rows is not None:
        return source.num_rows
    # What is no regular file gives its bytes only once, and they are the rows.
    if not source.paths or not all(path.is_file() for path in source.paths):
        return None
    try:
        return source.shard.num_rows_of(sum(map(_estimate, source.paths)))
    except OSError:
        return None  # the reader says why


def _estimate(path: Path) -> int:
    size = path.stat().st_size
    if path.suffix in (GZIP_SUFFIX, ZSTD_SUFFIX):
        size *= _COMPRESSION
        return size // 256
    with path.open("rb") as file:
        sample = file.read(_SAMPLE_BYTES)
    num_lines = max(sample.count(b"\n"), 1)
    return max(size * num_lines // max(len(sample), 1), 1) if size else 0
