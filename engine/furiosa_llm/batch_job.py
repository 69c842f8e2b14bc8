"""Runs a batch: rows in, answers out, one output row for each input row."""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

from furiosa_llm.artifact.defaults import resolve_engine_args
from furiosa_llm.batch_manifest import describe_batch, with_engine
from furiosa_llm.batch_summary import BatchSummary, Progress, Tally
from furiosa_llm.config import EngineArgs
from furiosa_llm.dataset.answer import AnswerRow, answer_of, error_answer
from furiosa_llm.dataset.columns import ColumnMapping
from furiosa_llm.dataset.failed_rows import FailedRowsWriter
from furiosa_llm.dataset.manifest import Manifest
from furiosa_llm.dataset.reader import RowSource, open_input
from furiosa_llm.dataset.record import PromptRecord, RawRow
from furiosa_llm.dataset.row_estimate import estimate_num_rows
from furiosa_llm.dataset.run_start import Resume
from furiosa_llm.dataset.shard import WHOLE, Shard
from furiosa_llm.dataset.status_file import StatusFile
from furiosa_llm.dataset.step_stats import StepStatsWriter
from furiosa_llm.dataset.target import OutputTarget, check_output, check_side_files
from furiosa_llm.dataset.writer import (
    DEFAULT_ROWS_PER_PART,
    DEFAULT_SECONDS_PER_PART,
    AnswerWriter,
)
from furiosa_llm.error_limit import ErrorLimit
from furiosa_llm.errors import (
    ConfigError,
    DatasetError,
    RequestError,
    RunStoppedError,
    TooManyErrorsError,
)
from furiosa_llm.interrupts import GracefulStop
from furiosa_llm.llm_engine import LLMEngine
from furiosa_llm.prompt_feed import FailedRow, PromptFeed, ReadyRow
from furiosa_llm.sampling_params import RequestOutputKind, SamplingParams

DEFAULT_GRACE_SECONDS = 30.0

_logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchJob:
    """What `run` was asked to do.

    Attributes:
        engine_args: How to load and run the model.
        sampling_params: For every row, as far as it does not bring its own.
        input: A file, a folder, a glob, `-`, or `datasets:NAME`; see `open_input`.
        output: The Parquet file to write, or a folder (with a slash at its end).
        overwrite: Replace an output that exists already.
        resume: Go on with the rows that an earlier run of the same job finished.
        retry_failed: Do its failed rows again; with `resume` only.
        rows_per_part: Rows after which finished ones are made durable.
        seconds_per_part: Time after which they are, however few there are.
        grace_seconds: How long rows that run may go on once the run is told to stop.
        deadline_seconds: Time after which the run is over, done or not.
        shard: Which of the input's rows to answer.
        columns: Which columns hold the prompt and the parameters.
        step_stats: Parquet file for the account of each engine step.
        failed_rows: JSON lines file for the rows that failed, as they were given.
        row_timeout_seconds: Longest time from a row's first step to its end.
        max_errors: Rows that may fail before the batch ends early; all of them if None.
        expected_column: Column that holds the right answer; answers are counted against it.
        num_examples: Answers to keep for a preview.
    """

    engine_args: EngineArgs
    sampling_params: SamplingParams
    input: str
    output: str | Path
    overwrite: bool = False
    resume: bool = False
    retry_failed: bool = False
    rows_per_part: int = DEFAULT_ROWS_PER_PART
    seconds_per_part: float = DEFAULT_SECONDS_PER_PART
    grace_seconds: float = DEFAULT_GRACE_SECONDS
    deadline_seconds: float | None = None
    shard: Shard = WHOLE
    columns: ColumnMapping = field(default_factory=ColumnMapping)
    step_stats: Path | None = None
    failed_rows: Path | None = None
    row_timeout_seconds: float | None = None
    max_errors: ErrorLimit | None = None
    expected_column: str | None = None
    num_examples: int = 0


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
    # Here already, so that the manifest tells what an artifact decided.
    job = dataclasses.replace(job, engine_args=resolve_engine_args(job.engine_args))
    return _Batch(job, on_progress or _ignore).run()


class _Batch:
    """One run of a job."""

    def __init__(self, job: BatchJob, on_progress: Callable[[Progress], None]) -> None:
        self._job = job
        self._on_progress = on_progress
        self._tally = Tally(expected_column=job.expected_column, num_examples=job.num_examples)
        self._pending: dict[str, PromptRecord] = {}  # by row index, the engine's request id
        self._previews: dict[int, str] = {}
        self._sources: dict[int, RawRow] = {}  # of unfinished rows, where failed ones are written
        self._failed_rows: FailedRowsWriter | None = None
        self._num_rows: int | None = None
        self._placement = ""
        self._is_stopping = False
        self._num_resumed = 0  # without failed rows

    def run(self) -> BatchSummary:
        job = self._job
        started = time.monotonic()
        source = open_input(job.input, shard=job.shard)
        may_exist = job.overwrite or job.resume
        target = check_output(job.output, source.paths, overwrite=may_exist)
        side_files = {"--step-stats": job.step_stats, "--failed-rows": job.failed_rows}
        check_side_files(side_files, source.paths, target, overwrite=may_exist)
        with AnswerWriter(
            job.output,
            manifest=_manifest(job, source),
            overwrite=job.overwrite,
            resume=_resume(job, source),
            rows_per_part=job.rows_per_part,
            seconds_per_part=job.seconds_per_part,
            carried_schema=source.schema,
        ) as writer:
            if writer.is_complete:
                target.status_path.unlink(missing_ok=True)
                return BatchSummary.of_complete(Path(job.output), writer.manifest.counts)
            self._tally.add_saved(writer.saved)
            self._num_resumed = self._tally.num_rows - self._tally.num_failed
            with StatusFile(target.status_path) as self._status:
                return self._run(source, writer, started=started)

    def _run(self, source: RowSource, writer: AnswerWriter, *, started: float) -> BatchSummary:
        job = self._job
        self._show(Progress(phase="loading"), writer)
        num_rows = estimate_num_rows(source)
        num_left = None if num_rows is None else max(num_rows - self._tally.num_rows, 0)
        engine = LLMEngine.from_engine_args(job.engine_args, num_prompts=num_left)
        try:
            _check_params(engine, job.sampling_params)
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
            self._answer(engine, source, writer, stop)
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

    def _answer(
        self, engine: LLMEngine, source: RowSource, writer: AnswerWriter, stop: GracefulStop
    ) -> None:
        """Answers every row, in whatever order the engine finishes them.

        Raises:
            RunStoppedError: There was a reason to stop before all were answered.
        """
        job = self._job
        params = dataclasses.replace(job.sampling_params, output_kind=RequestOutputKind.FINAL)
        done = writer.saved.done
        started = time.monotonic()
        with ExitStack() as stack:
            feed = stack.enter_context(
                PromptFeed(
                    (row for row in source.rows() if row.row_index not in done),
                    tokenizer=engine.tokenizer,
                    columns=job.columns,
                    defaults=params,
                    max_model_len=engine.limits.model_info.max_model_len,
                    num_previews=job.num_examples,
                    keeps_sources=job.failed_rows is not None,
                )
            )
            if job.failed_rows is not None:
                self._failed_rows = stack.enter_context(FailedRowsWriter(job.failed_rows))
            step_stats = None
            if job.step_stats is not None:
                step_stats = stack.enter_context(StepStatsWriter(job.step_stats))
            while engine.has_unfinished_requests() or not feed.is_exhausted:
                if stop.reason is None:
                    for answer, preview in self._fill(engine, feed):
                        self._keep(writer, answer, preview)
                        self._check_errors()
                elif not self._winds_down(engine, stop):
                    break
                writer.checkpoint()
                if not engine.has_unfinished_requests():
                    continue
                self._step(engine, writer, step_stats)
                self._report("answering", engine, writer, time.monotonic() - started)
            if self._pending or not feed.is_exhausted:
                raise RunStoppedError(f"stopped by {stop.reason} before all rows were done")

    def _step(
        self, engine: LLMEngine, writer: AnswerWriter, step_stats: StepStatsWriter | None
    ) -> None:
        """Runs a step and keeps what it brings."""
        for output in engine.step():
            answer = answer_of(self._pending.pop(output.request_id), output)
            self._keep(writer, answer, self._previews.pop(answer.row_index, ""))
        self._check_errors()
        for step in engine.last_steps:
            self._tally.add_step(step)
            if step_stats is not None:
                step_stats.write(step)

    def _winds_down(self, engine: LLMEngine, stop: GracefulStop) -> bool:
        """Drops what waits, once, and tells whether what runs may still go on."""
        if not self._is_stopping:
            self._is_stopping = True
            engine.abort_waiting()
            _logger.warning(
                "stopping (%s): rows that run may go on for %.0f s; a second signal stops at once",
                stop.reason,
                stop.seconds_left,
            )
        return engine.has_unfinished_requests() and stop.seconds_left > 0

    def _keep(self, writer: AnswerWriter, answer: AnswerRow, preview: str) -> None:
        self._tally.add_row(answer, preview)
        writer.write(answer)
        source = self._sources.pop(answer.row_index, None)
        if source is not None and self._failed_rows is not None and answer.error_code is not None:
            self._failed_rows.write(source)

    def _check_errors(self) -> None:
        """Ends the batch when more rows have failed than may."""
        limit = self._job.max_errors
        num_failed, num_done = self._tally.num_failed, self._tally.num_rows
        if limit is not None and limit.stops(num_failed=num_failed, num_done=num_done):
            raise TooManyErrorsError(
                f"stopped early: {num_failed} of {num_done} rows failed, more than --max-errors "
                f"{limit}; the output is not complete, the rows finished so far are in "
                f"{OutputTarget.of(self._job.output).parts_folder}"
            )

    def _fill(self, engine: LLMEngine, feed: PromptFeed) -> Iterator[tuple[AnswerRow, str]]:
        """Hands rows to the engine while it has room. Yields those that cannot be answered."""
        limit = engine.limits.scheduler_config.max_processing_samples
        while engine.num_unfinished_requests < limit:
            rows = feed.take(wait=not engine.has_unfinished_requests())
            if not rows:
                return
            for row in rows:
                if row.source is not None:
                    self._sources[row.row_index] = row.source
                error = row.error if isinstance(row, FailedRow) else self._try_add(engine, row)
                if error is not None:
                    where = row if isinstance(row, FailedRow) else row.record
                    yield (
                        error_answer(where.row_index, where.request_id, where.carried, error),
                        row.preview,
                    )

    def _report(
        self, phase: str, engine: LLMEngine, writer: AnswerWriter, elapsed_seconds: float
    ) -> None:
        is_running = engine.has_unfinished_requests()
        num_running = self._tally.num_running if is_running else 0
        progress = Progress(
            phase=phase,
            placement=self._placement,
            num_rows=self._num_rows if phase != "done" else self._tally.num_rows,
            num_done=self._tally.num_rows,
            num_failed=self._tally.num_failed,
            num_resumed=self._num_resumed,
            num_prompt_tokens=self._tally.num_computed_prompt_tokens,
            num_output_tokens=self._tally.num_sampled_tokens,
            num_running=num_running,
            num_waiting=max(engine.num_unfinished_requests - num_running, 0),
            kv_cache_usage=self._tally.kv_cache_usage if is_running else 0.0,
            elapsed_seconds=elapsed_seconds,
        )
        self._show(progress, writer)

    def _show(self, progress: Progress, writer: AnswerWriter) -> None:
        self._on_progress(progress)
        self._status.update(progress.phase, lambda: progress.as_status(writer.num_saved))

    def _try_add(self, engine: LLMEngine, row: ReadyRow) -> RequestError | None:
        request_id = str(row.record.row_index)
        prompt = {"prompt_token_ids": row.token_ids}
        try:
            engine.add_request(
                request_id,
                prompt,
                row.record.sampling_params,
                timeout_seconds=self._job.row_timeout_seconds,
            )
        except RequestError as error:
            return error
        self._pending[request_id] = row.record
        if row.preview:
            self._previews[row.record.row_index] = row.preview
        return None


def _check_params(engine: LLMEngine, params: SamplingParams) -> None:
    """Refuses parameters that would fail every row, before any row is read.

    Raises:
        ConfigError: They do not go with the model.
    """
    try:
        engine.check_params(params)
    except RequestError as error:
        raise ConfigError(str(error)) from error


def _manifest(job: BatchJob, source: RowSource) -> Manifest:
    described = ("engine_args", "sampling_params", "columns", "shard")
    options = {
        field.name: getattr(job, field.name)
        for field in dataclasses.fields(job)
        if field.name not in described
    }
    return describe_batch(job.engine_args, job.sampling_params, job.columns, source, options)


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
    if job.expected_column is not None and tally.num_rows and not tally.num_expected:
        notes.append(f"no row has the expected column {job.expected_column!r}")
    if job.failed_rows is not None and tally.num_failed:
        notes.append(f"the failed rows are in {job.failed_rows}, which can be an --input")
    return tuple(notes)


def _ignore(_: Progress) -> None:
    """Reports progress to no one."""
