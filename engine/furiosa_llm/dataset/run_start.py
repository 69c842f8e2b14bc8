"""Decides what a run begins with: nothing, the parts of an earlier run, or an earlier output."""

from __future__ import annotations

import itertools
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from furiosa_llm.dataset.columns import ColumnMapping
from furiosa_llm.dataset.durable import durable_file, sync_folder, writing
from furiosa_llm.dataset.earlier_run import PARTS_MANIFEST, run_of_output, run_of_parts
from furiosa_llm.dataset.manifest import Manifest
from furiosa_llm.dataset.part_columns import Carried, DeclaredTypes, part_schema
from furiosa_llm.dataset.parts import write_answer_part
from furiosa_llm.dataset.reader import STANDARD_INPUT, RowSource
from furiosa_llm.dataset.record import identify
from furiosa_llm.dataset.run_lock import LOCK_NAME
from furiosa_llm.dataset.saved_parts import RowIndexes, SavedRows, has_parts, load_parts
from furiosa_llm.dataset.schema import ANSWER_SCHEMA
from furiosa_llm.dataset.target import OutputTarget, check_replaceable
from furiosa_llm.errors import ConfigError, DatasetError

_ROWS_PER_PART = 8192


@dataclass(frozen=True, slots=True, kw_only=True)
class Resume:
    """How to go on with an earlier run.

    Attributes:
        carried: Yields what each row of the input carries, in order.
        retry_failed: Whether its failed rows are done again.
    """

    carried: Callable[[], Iterator[Carried]]
    retry_failed: bool = False

    @classmethod
    def of(cls, source: RowSource, columns: ColumnMapping, *, retry_failed: bool) -> Resume:
        """Goes on with the rows of an input.

        Raises:
            ConfigError: No one can tell whether the input is the same as then.
        """
        if source.source == STANDARD_INPUT or any(not path.is_file() for path in source.paths):
            raise ConfigError(
                f"--resume needs an input that can be read again, got --input {source.source}; "
                "save it to a file first"
            )

        def carried() -> Iterator[Carried]:
            return (identify(row, columns)[1] for row in source.rows())

        return cls(carried=carried, retry_failed=retry_failed)


@dataclass(frozen=True, slots=True, kw_only=True)
class RunStart:
    """What a run begins with.

    Attributes:
        manifest: Of the run; one that is resumed keeps the time of its start.
        saved: The rows that are finished.
        may_replace: Whether the run may replace an output that is there.
        is_complete: Whether the output is there already, and nothing is left to do.
    """

    manifest: Manifest
    saved: SavedRows = field(default_factory=SavedRows)
    may_replace: bool = False
    is_complete: bool = False


def start_run(
    target: OutputTarget,
    manifest: Manifest,
    declared: DeclaredTypes,
    *,
    overwrite: bool,
    resume: Resume | None,
) -> RunStart:
    """Prepares the folder of parts, whose lock is held.

    Raises:
        ConfigError: What is there to resume is of another job.
        DatasetError: What is there would be lost, or the folder cannot be read or written.
    """
    folder = target.parts_folder
    if resume is None:
        check_replaceable(target, overwrite=overwrite)
        if has_parts(folder) and not overwrite:
            raise DatasetError(
                f"{folder} holds the rows of an unfinished run; go on with --resume, or start "
                "again with --overwrite"
            )
        return _begin(folder, manifest, may_replace=overwrite)
    left, done = run_of_parts(folder), run_of_output(target)
    if done is not None and left is not None and done.started_at == left.started_at:
        left = None  # it died after its end, before it could take its parts away
    if left is not None and overwrite and not left.is_same_job(manifest):
        check_replaceable(target, overwrite=True)
        return _begin(folder, manifest, may_replace=True)
    if left is not None:
        left.check_same_job(manifest)
        may_replace = overwrite or (done is not None and done.is_same_job(manifest))
        check_replaceable(target, overwrite=may_replace)
        return RunStart(
            manifest=replace(manifest, started_at=left.started_at),
            saved=load_parts(folder, part_schema(declared), drop_failed=resume.retry_failed),
            may_replace=may_replace,
        )
    if done is None or (overwrite and not done.is_same_job(manifest)):
        check_replaceable(target, overwrite=overwrite)
        return _begin(folder, manifest, may_replace=overwrite)
    done.check_same_job(manifest)
    if not (resume.retry_failed and done.counts.get("num_failed")):
        return RunStart(manifest=replace(manifest, counts=done.counts), is_complete=True)
    return _reopen(target, manifest, declared, resume)


def empty_folder(folder: Path) -> None:
    """Removes everything but the lock."""
    for path in folder.iterdir():
        if path.name == LOCK_NAME:
            continue
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink()


def _begin(folder: Path, manifest: Manifest, *, may_replace: bool) -> RunStart:
    with writing(folder):
        empty_folder(folder)
        sync_folder(folder.parent)
    _write_manifest(folder, manifest)
    return RunStart(manifest=manifest, may_replace=may_replace)


def _reopen(
    target: OutputTarget, manifest: Manifest, declared: DeclaredTypes, resume: Resume
) -> RunStart:
    """Makes parts of an output's answered rows. The output stays until a new one is complete."""
    folder = target.parts_folder
    with writing(folder):
        empty_folder(folder)
    carried = resume.carried()
    for number, rows in enumerate(_output_rows(target, ANSWER_SCHEMA)):
        own = list(itertools.islice(carried, len(rows)))
        if len(own) < len(rows):
            raise DatasetError(f"{target.path} has more rows than the input")
        is_answered = rows.column("error_code").is_null()
        kept = [one for one, is_kept in zip(own, is_answered.to_pylist(), strict=True) if is_kept]
        if kept:
            path = folder / f"part-{number:06d}.parquet"
            write_answer_part(path, rows.filter(is_answered), kept, declared)
    # Last: without it, the parts do not count.
    _write_manifest(folder, manifest)
    saved = load_parts(folder, part_schema(declared), drop_failed=False)
    return RunStart(manifest=manifest, saved=saved, may_replace=True)


def failed_rows_of(target: OutputTarget) -> RowIndexes:
    """Returns which rows of a complete output failed.

    Raises:
        DatasetError: It cannot be read.
    """
    failed = RowIndexes()
    schema = pa.schema([ANSWER_SCHEMA.field(name) for name in ("row_index", "error_code")])
    for rows in _output_rows(target, schema):
        is_failed = rows.column("error_code").is_valid()
        failed.add(rows.filter(is_failed).column("row_index").to_numpy())
    return failed


def _output_rows(target: OutputTarget, schema: pa.Schema) -> Iterator[pa.Table]:
    """Yields the answers of an output in order, with the columns of a schema."""
    path = target.path
    files = sorted(path.glob("part-*.parquet")) if path.is_dir() else [path]
    for name in files:
        try:
            with pq.ParquetFile(name) as file:
                for batch in file.iter_batches(batch_size=_ROWS_PER_PART, columns=schema.names):
                    yield pa.Table.from_batches([batch]).cast(schema)
        except (OSError, pa.ArrowException, KeyError) as error:
            raise DatasetError(f"{name}: cannot be read: {error}") from error


def _write_manifest(folder: Path, manifest: Manifest) -> None:
    with durable_file(folder / PARTS_MANIFEST) as file:
        file.write(manifest.to_json().encode())
