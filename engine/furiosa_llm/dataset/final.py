"""Merges the parts into the output, as one file or as a folder of files."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from furiosa_llm.dataset.durable import durable_file, sync_folder, writing
from furiosa_llm.dataset.layout import OutputLayout
from furiosa_llm.dataset.manifest import MANIFEST_KEY
from furiosa_llm.dataset.merge import merged_tables
from furiosa_llm.dataset.parts import PartInfo, joined_columns
from furiosa_llm.dataset.shard import WHOLE, Shard
from furiosa_llm.dataset.shard_file import shard_metadata
from furiosa_llm.dataset.target import FOLDER_MANIFEST

ROWS_PER_FILE = 65_536

_MAX_CHUNK_ROWS = 4096
_MAX_CHUNK_BYTES = 32 << 20


def write_final_file(
    folder: Path,
    infos: Sequence[PartInfo],
    declared: pa.Schema | None,
    metadata: Mapping[str, str],
    shard: Shard | None = WHOLE,
) -> Path:
    """Writes the complete output as one file into the parts' folder.

    `shard` is what the parts must hold; None where rows may be missing.

    Raises:
        DatasetError: A part cannot be read or the file not be written.
    """
    layout, metadata = _planned(infos, declared, metadata, shard)
    path = folder / "merged.parquet"
    _write(path, _merged_chunks(infos, folder, shard), layout, metadata)
    return path


def write_final_folder(
    folder: Path,
    infos: Sequence[PartInfo],
    declared: pa.Schema | None,
    metadata: Mapping[str, str],
    shard: Shard | None = WHOLE,
) -> Path:
    """Writes the complete output as a folder of files into the parts' folder.

    `shard` is what the parts must hold; None where rows may be missing.

    Raises:
        DatasetError: A part cannot be read or a file not be written.
    """
    layout, metadata = _planned(infos, declared, metadata, shard)
    merged = folder / "merged"
    with writing(merged):
        merged.mkdir()
    for number, chunks in enumerate(_files(_merged_chunks(infos, folder, shard))):
        _write(merged / f"part-{number:06d}.parquet", chunks, layout, metadata)
    with durable_file(merged / FOLDER_MANIFEST) as file:
        file.write(metadata[MANIFEST_KEY].encode())
    with writing(merged):
        sync_folder(merged)
    return merged


def _planned(
    infos: Sequence[PartInfo],
    declared: pa.Schema | None,
    metadata: Mapping[str, str],
    shard: Shard | None,
) -> tuple[OutputLayout, Mapping[str, str]]:
    """Returns the columns and the metadata; those of a shard are enough to join it to others."""
    carried = joined_columns(infos)
    is_shard = shard not in (None, WHOLE)
    if is_shard:
        metadata = {**metadata, **shard_metadata(carried, declared)}
    return OutputLayout(carried, declared, is_shard=is_shard), metadata


def _write(
    path: Path, chunks: Iterator[pa.Table], layout: OutputLayout, metadata: Mapping[str, str]
) -> None:
    schema = layout.schema.with_metadata(dict(metadata))
    with (
        durable_file(path) as file,
        pq.ParquetWriter(file, schema, compression="zstd") as writer,
    ):
        for chunk in chunks:
            writer.write_table(layout.table(chunk))


def _files(chunks: Iterator[pa.Table]) -> Iterator[Iterator[pa.Table]]:
    """Deals chunks out to files; there is one file even if there is no row."""
    first: pa.Table | None = next(chunks, None)

    def chunks_of_one_file() -> Iterator[pa.Table]:
        nonlocal first
        num_rows = 0
        while first is not None and num_rows + len(first) <= ROWS_PER_FILE:
            num_rows += len(first)
            chunk, first = first, None
            yield chunk
            first = next(chunks, None)

    yield chunks_of_one_file()
    while first is not None:
        yield chunks_of_one_file()


def _merged_chunks(
    infos: Sequence[PartInfo], scratch: Path, shard: Shard | None
) -> Iterator[pa.Table]:
    """Yields the merged rows in tables of the same number of rows, the last one apart."""
    num_rows = sum(info.num_rows for info in infos)
    num_bytes = sum(info.num_bytes for info in infos)
    wanted = max(1, min(_MAX_CHUNK_ROWS, _MAX_CHUNK_BYTES * num_rows // max(num_bytes, 1)))
    held: list[pa.Table] = []
    for table in merged_tables(infos, scratch, shard=shard):
        held.append(table)
        if sum(map(len, held)) >= wanted:
            joined = pa.concat_tables(held)
            full = len(joined) - len(joined) % wanted
            yield from (joined.slice(start, wanted) for start in range(0, full, wanted))
            held = [joined.slice(full)]
    rest = [table for table in held if len(table)]
    if rest:
        yield pa.concat_tables(rest)
