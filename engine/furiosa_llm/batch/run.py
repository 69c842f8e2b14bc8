"""Runs a batch: rows in, answers out, one output row for each input row."""

from __future__ import annotations

import contextlib
import dataclasses
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path

from furiosa_llm.artifact.defaults import resolve_engine_args
from furiosa_llm.batch.answering import answer_rows
from furiosa_llm.batch.default_params import check_params
from furiosa_llm.batch.job import BatchJob
from furiosa_llm.batch.manifest import describe_batch, with_engine
from furiosa_llm.batch.summary import BatchSummary, Progress
from furiosa_llm.batch.tally import Tally
from furiosa_llm.dataset.failed_rows import FailedRowsWriter
from furiosa_llm.dataset.reader import RowSource, open_input
from furiosa_llm.dataset.row_estimate import estimate_num_rows
from furiosa_llm.dataset.run_start import Resume, failed_rows_of
from furiosa_llm.dataset.side_files import SideFile, check_side_files
from furiosa_llm.dataset.status_file import StatusFile
from furiosa_llm.dataset.target import check_output
from furiosa_llm.dataset.writer import AnswerWriter
from furiosa_llm.errors import ConfigError, DatasetError
from furiosa_llm.interrupts import GracefulStop
from furiosa_llm.llm_engine import LLMEngine


def run_batch_job(
    job: BatchJob, *, on_progress: Callable[[Progress], None] | None = None
) -> BatchSummary:
    """Answers every row of the input and writes one output row for each.

    Rows are read and tokenized in a thread of their own while the engine runs; answers go to disk
    while the batch goes on, so that memory does not grow with the number of rows.

    Args:
        job: What to do.
        on_progress: Called at the start of each phase and after every engine step.

    Raises:
        ConfigError: Options do not go together, or with the model or this machine.
        DatasetError: The input cannot be read or the output cannot be written.
        ModelLoadError: The model cannot be loaded.
        RunStoppedError: A signal or the deadline ended it early.
        TooManyErrorsError: More rows failed than `max_errors`.
    """
    return _Batch(job, on_progress or _ignore).run()


class _Batch:
    """One run of a job."""

    def __init__(self, job: BatchJob, on_progress: Callable[[Progress], None]) -> None:
        self._job = job
        self._on_progress = on_progress
        self._tally = Tally(expected_column=job.expected_column, num_examples=job.num_examples)
        self._num_rows: int | None = None
        self._placement = ""
        self._answering_seconds = 0.0

    def run(self) -> BatchSummary:
        job = self._job
        started = time.monotonic()
        source = open_input(job.input, shard=job.shard)
        may_exist = job.overwrite or job.resume
        target = check_output(job.output, source.paths, overwrite=may_exist)
        side_files = _side_files(job)
        is_replaced = job.overwrite or (job.resume and target.has_earlier_run)
        check_side_files(side_files, source.paths, target, overwrite=is_replaced)
        # Here already, so that the manifest tells what an artifact decided.
        engine_args = resolve_engine_args(job.engine_args)
        self._job = job = dataclasses.replace(job, engine_args=engine_args)
        writer = AnswerWriter(
            job.output,
            manifest=describe_batch(job, source),
            overwrite=job.overwrite,
            resume=_resume(job, source),
            rows_per_part=job.rows_per_part,
            seconds_per_part=job.seconds_per_part,
            carried_schema=source.schema,
        )
        # The writer ends first, so that the last status tells of all that it saved.
        with StatusFile.open(target.status_path) as self._status, writer:
            if writer.is_complete:
                if job.failed_rows is not None:
                    with FailedRowsWriter.open(job.failed_rows) as failed_rows:
                        failed_rows.write_those(source, failed_rows_of(target))
                return BatchSummary.of_complete(Path(job.output), writer.manifest.counts)
            self._tally.add_saved(writer.saved)
            return self._run(source, writer, started=started)

    def _run(self, source: RowSource, writer: AnswerWriter, *, started: float) -> BatchSummary:
        job = self._job
        self._show(Progress(phase="loading"), writer)
        num_rows = estimate_num_rows(source)
        num_left = None if num_rows is None else max(num_rows - self._tally.num_rows, 0)
        engine = LLMEngine.from_engine_args(job.engine_args, num_prompts=num_left)
        try:
            check_params(engine, job.sampling_params)
            startup_seconds = time.monotonic() - started - engine.import_seconds
            stop = GracefulStop(
                grace_seconds=_grace_seconds(job),
                deadline=None if job.deadline_seconds is None else started + job.deadline_seconds,
            )
            summary = self._run_on(engine, source, writer, stop, startup_seconds=startup_seconds)
            return dataclasses.replace(summary, import_seconds=engine.import_seconds)
        finally:
            engine.shutdown()

    def _run_on(
        self,
        engine: LLMEngine,
        source: RowSource,
        writer: AnswerWriter,
        stop: GracefulStop,
        *,
        startup_seconds: float,
    ) -> BatchSummary:
        job = self._job
        loaded = time.monotonic()
        self._placement = str(engine.placement)
        self._count_rows(source)
        with stop:
            answer_rows(
                job,
                engine=engine,
                source=source,
                writer=writer,
                tally=self._tally,
                stop=stop,
                on_step=lambda: self._report(
                    "answering", engine, writer, time.monotonic() - loaded
                ),
            )
        answered = time.monotonic()
        self._report("writing", engine, writer, answered - loaded)
        manifest = with_engine(writer.manifest, engine)
        writer.finish(manifest.ended(self._tally.counts()).metadata())
        self._report("done", engine, writer, answered - loaded)
        notes = _notes(job, self._tally, writer.renamed)
        return self._tally.summary(
            output=Path(job.output),
            placement=self._placement,
            cache_config=engine.limits.cache_config,
            startup_seconds=startup_seconds,
            answer_seconds=answered - loaded,
            write_seconds=time.monotonic() - answered,
            notes=notes,
        )

    def _count_rows(self, source: RowSource) -> None:
        """Finds out how many rows there are, beside the work where that takes reading them."""
        self._num_rows = source.num_rows
        if self._num_rows is None:

            def count() -> None:
                with contextlib.suppress(DatasetError):  # the reader meets the same error
                    self._num_rows = source.count_rows()

            threading.Thread(target=count, name="row-count", daemon=True).start()

    def _report(
        self, phase: str, engine: LLMEngine, writer: AnswerWriter, elapsed_seconds: float
    ) -> None:
        self._answering_seconds = elapsed_seconds
        progress = self._tally.progress(
            phase,
            placement=self._placement,
            num_rows=self._num_rows if phase != "done" else self._tally.num_rows,
            num_unfinished=engine.num_unfinished_requests,
            elapsed_seconds=elapsed_seconds,
        )
        self._show(progress, writer)

    def _show(self, progress: Progress, writer: AnswerWriter) -> None:
        self._on_progress(progress)
        self._status.update(progress.phase, lambda: self._status_values(writer))

    def _status_values(self, writer: AnswerWriter) -> Mapping[str, object]:
        """Returns how far the batch is now, which may be past the last progress shown."""
        progress = self._tally.progress(
            "",
            placement="",
            num_rows=self._num_rows,
            num_unfinished=0,
            elapsed_seconds=self._answering_seconds,
        )
        return progress.as_status(writer.num_saved)


def _side_files(job: BatchJob) -> list[SideFile]:
    files = []
    if job.step_stats is not None:
        files.append(SideFile.of_step_stats(job.step_stats))
    if job.failed_rows is not None:
        files.append(SideFile.of_failed_rows(job.failed_rows))
    return files


def _resume(job: BatchJob, source: RowSource) -> Resume | None:
    """Returns how to go on with an earlier run, if that is asked for.

    Raises:
        ConfigError: It cannot be gone on with, or failed rows are to be done again without it.
    """
    if job.resume:
        return Resume.of(source, job.columns, retry_failed=job.retry_failed)
    if job.retry_failed:
        raise ConfigError("--retry-failed goes with --resume only; give both")
    return None


def _grace_seconds(job: BatchJob) -> float:
    """The time to finish what runs; at most half of what there is in all."""
    if job.deadline_seconds is None:
        return job.grace_seconds
    return min(job.grace_seconds, job.deadline_seconds / 2)


def _notes(job: BatchJob, tally: Tally, renamed: Mapping[str, str]) -> tuple[str, ...]:
    """What a user should know beside the figures."""
    notes = [
        f"the input's column {name!r} is in the output as {output_name!r}"
        for name, output_name in renamed.items()
    ]
    if tally.num_rows > tally.num_resumed:
        no_row = "no row since the resume has" if tally.num_resumed else "no row has"
        if job.expected_column is not None and not tally.num_expected:
            notes.append(f"{no_row} the expected column {job.expected_column!r}")
        if job.columns.params_column is not None and not tally.has_own_params:
            notes.append(f"{no_row} the column of parameters {job.columns.params_column!r}")
    if job.failed_rows is not None and tally.num_failed:
        notes.append(f"the failed rows are in {job.failed_rows}, which can be an --input")
    return tuple(notes)


def _ignore(_: Progress) -> None:
    """Reports progress to no one."""
