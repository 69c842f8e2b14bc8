"""The output of a run, read again: a file, or a folder of them."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from furiosa_llm.dataset.manifest import MANIFEST_KEY
from furiosa_llm.dataset.reading import reading
from furiosa_llm.dataset.schema import ANSWER_SCHEMA
from furiosa_llm.errors import DatasetError


@dataclass(frozen=True, slots=True, kw_only=True)
class RunOutput:
    """A finished output, of which only the footers were read.

    Attributes:
        path: The file, or the folder.
        files: What holds its rows, in order.
        manifest: What the run was; empty where that is not told.
        num_rows: How many rows it holds.
    """

    path: Path
    files: tuple[Path, ...]
    manifest: Mapping[str, Any]
    num_rows: int

    def tables(self, columns: Sequence[str]) -> Iterator[pa.Table]:
        """Yields its rows in order, a row group at a time.

        Args:
            columns: Of those that every output has.

        Raises:
            DatasetError: A file cannot be read, or another program wrote it.
        """
        schema = pa.schema([ANSWER_SCHEMA.field(name) for name in columns])
        for path in self.files:
            with _reading(path), pq.ParquetFile(path, page_checksum_verification=True) as file:
                missing = [name for name in columns if name not in file.schema_arrow.names]
                if missing:
                    raise DatasetError(
                        f"{path} has no column {missing[0]}; name the output of `furiosa-llm run`"
                    )
                for group in range(file.num_row_groups):
                    table = file.read_row_group(group, columns=list(columns), use_threads=False)
                    yield table.select(list(columns)).cast(schema)


def open_run_output(path: Path) -> RunOutput:
    """Reads the footers of an output.

    Raises:
        DatasetError: It is not there, not finished, or cannot be read.
    """
    files = tuple(output_files(path))
    manifest: Mapping[str, Any] = {}
    num_rows = 0
    for file in files:
        with _reading(file), pq.ParquetFile(file) as footer:
            manifest = manifest or _manifest_of(footer.schema_arrow)
            num_rows += footer.metadata.num_rows
    num_written = manifest.get("counts", {}).get("num_rows", num_rows)
    if num_rows != num_written:
        raise DatasetError(
            f"{path} holds {num_rows} of the {num_written} rows that its run wrote; take the "
            "others from where they went, or run it again"
        )
    return RunOutput(path=path, files=files, manifest=manifest, num_rows=num_rows)


def output_files(path: Path) -> list[Path]:
    """Returns the files of an output, in the order of their rows.

    Raises:
        DatasetError: There are none, or its run has not ended.
    """
    if path.is_dir():
        files = sorted(path.glob("part-*.parquet"))
        if not files:
            raise DatasetError(f"{path} holds no part-*.parquet; name the output of a run")
        return files
    if path.exists():
        return [path]
    if path.with_name(f"{path.name}.parts").exists():
        raise DatasetError(f"{path} is not finished; end its run first")
    raise DatasetError(f"{path} does not exist; name the output of a run")


def _manifest_of(schema: pa.Schema) -> Mapping[str, Any]:
    text = (schema.metadata or {}).get(MANIFEST_KEY.encode())
    try:
        manifest = json.loads(text or "{}")
    except ValueError:
        return {}
    return manifest if isinstance(manifest, dict) else {}


def _reading(path: Path) -> contextlib.AbstractContextManager[None]:
    return reading(path, "the output of a run")
