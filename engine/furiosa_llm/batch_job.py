"""Runs a batch: rows in, answers out, one output row for each input row."""

from __future__ import annotations

import contextlib
import dataclasses
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

from furiosa_llm.artifact.defaults import resolve_engine_args
from furiosa_llm.batch_summary import BatchSummary, Progress, Tally
from furiosa_llm.config import EngineArgs
from furiosa_llm.dataset.answer import AnswerRow, answer_of, error_answer
from furiosa_llm.dataset.columns import ColumnMapping
from furiosa_llm.dataset.hashing import hash_model, hash_text, hash_tokenizer
from furiosa_llm.dataset.manifest import Manifest, describe_inputs
from furiosa_llm.dataset.reader import RowSource, open_input
from furiosa_llm.dataset.record import PromptRecord
from furiosa_llm.dataset.row_estimate import estimate_num_rows
from furiosa_llm.dataset.shard import WHOLE, Shard
from furiosa_llm.dataset.step_stats import StepStatsWriter
from furiosa_llm.dataset.target import check_output, check_side_file
from furiosa_llm.dataset.writer import AnswerWriter
from furiosa_llm.errors import ConfigError, DatasetError, RequestError
from furiosa_llm.llm_engine import LLMEngine
from furiosa_llm.prompt_feed import FailedRow, PromptFeed, ReadyRow
from furiosa_llm.sampling_params import RequestOutputKind, SamplingParams


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchJob:
    """What `run` was asked to do.

    Attributes:
        engine_args: How to load and run the model.
        sampling_params: For every row, as far as it does not bring its own.
        input: A file, a folder, a glob, `-`, or `datasets:NAME`; see `open_input`.
        output: The Parquet file to write, or a folder (with a slash at its end).
        overwrite: Replace an output that exists already.
        shard: Which of the input's rows to answer.
        columns: Which columns hold the prompt and the parameters.
        step_stats: Parquet file for the account of each engine step.
        expected_column: Column that holds the right answer; answers are counted against it.
        num_examples: Answers to keep for a preview.
    """

    engine_args: EngineArgs
    sampling_params: SamplingParams
    input: str
    output: str | Path
    overwrite: bool = False
    shard: Shard = WHOLE
    columns: ColumnMapping = field(default_factory=ColumnMapping)
    step_stats: Path | None = None
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
        self._num_rows: int | None = None
        self._placement = ""

    def run(self) -> BatchSummary:
        job = self._job
        started = time.monotonic()
        source = open_input(job.input, shard=job.shard)
        target = check_output(job.output, source.paths, overwrite=job.overwrite)
        if job.step_stats is not None:
            check_side_file(job.step_stats, source.paths, target, overwrite=job.overwrite)
        self._on_progress(Progress(phase="loading"))
        engine = LLMEngine.from_engine_args(job.engine_args, num_prompts=estimate_num_rows(source))
        try:
            _check_params(engine, job.sampling_params)
            startup_seconds = time.monotonic() - started - engine.import_seconds
            summary = self._run_on(engine, source, startup_seconds=startup_seconds)
            return dataclasses.replace(summary, import_seconds=engine.import_seconds)
        finally:
            engine.shutdown()

    def _run_on(
        self, engine: LLMEngine, source: RowSource, *, startup_seconds: float
    ) -> BatchSummary:
        job = self._job
        loaded = time.monotonic()
        self._placement = str(engine.placement)
        self._count_rows(source)
        manifest = _manifest(job, source, engine)
        with AnswerWriter(
            job.output,
            manifest=manifest,
            overwrite=job.overwrite,
            carried_schema=source.schema,
        ) as writer:
            self._answer(engine, source, writer)
            answered = time.monotonic()
            self._report("writing", engine, answered - loaded)
            writer.finish(manifest.ended(self._tally.counts()).metadata())
        self._report("done", engine, answered - loaded)
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

    def _answer(self, engine: LLMEngine, source: RowSource, writer: AnswerWriter) -> None:
        """Answers every row, in whatever order the engine finishes them."""
        job = self._job
        params = dataclasses.replace(job.sampling_params, output_kind=RequestOutputKind.FINAL)
        started = time.monotonic()
        with ExitStack() as stack:
            feed = stack.enter_context(
                PromptFeed(
                    source.rows(),
                    tokenizer=engine.tokenizer,
                    columns=job.columns,
                    defaults=params,
                    max_model_len=engine.limits.model_info.max_model_len,
                    num_previews=job.num_examples,
                )
            )
            step_stats = None
            if job.step_stats is not None:
                step_stats = stack.enter_context(StepStatsWriter(job.step_stats))
            while engine.has_unfinished_requests() or not feed.is_exhausted:
                for answer, preview in self._fill(engine, feed):
                    self._keep(writer, answer, preview)
                if not engine.has_unfinished_requests():
                    continue
                for output in engine.step():
                    answer = answer_of(self._pending.pop(output.request_id), output)
                    self._keep(writer, answer, self._previews.pop(answer.row_index, ""))
                for step in engine.last_steps:
                    self._tally.add_step(step)
                    if step_stats is not None:
                        step_stats.write(step)
                self._report("answering", engine, time.monotonic() - started)

    def _keep(self, writer: AnswerWriter, answer: AnswerRow, preview: str) -> None:
        self._tally.add_row(answer, preview)
        writer.write(answer)

    def _fill(self, engine: LLMEngine, feed: PromptFeed) -> Iterator[tuple[AnswerRow, str]]:
        """Hands rows to the engine while it has room. Yields those that cannot be answered."""
        limit = engine.limits.scheduler_config.max_processing_samples
        while engine.num_unfinished_requests < limit:
            rows = feed.take(wait=not engine.has_unfinished_requests())
            if not rows:
                return
            for row in rows:
                error = row.error if isinstance(row, FailedRow) else self._try_add(engine, row)
                if error is not None:
                    where = row if isinstance(row, FailedRow) else row.record
                    yield (
                        error_answer(where.row_index, where.request_id, where.carried, error),
                        row.preview,
                    )

    def _report(self, phase: str, engine: LLMEngine, elapsed_seconds: float) -> None:
        is_running = engine.has_unfinished_requests()
        num_running = self._tally.num_running if is_running else 0
        self._on_progress(
            Progress(
                phase=phase,
                placement=self._placement,
                num_rows=self._num_rows if phase != "done" else self._tally.num_rows,
                num_done=self._tally.num_rows,
                num_failed=self._tally.num_failed,
                num_prompt_tokens=self._tally.num_computed_prompt_tokens,
                num_output_tokens=self._tally.num_sampled_tokens,
                num_running=num_running,
                num_waiting=max(engine.num_unfinished_requests - num_running, 0),
                kv_cache_usage=self._tally.kv_cache_usage if is_running else 0.0,
                elapsed_seconds=elapsed_seconds,
            )
        )

    def _try_add(self, engine: LLMEngine, row: ReadyRow) -> RequestError | None:
        request_id = str(row.record.row_index)
        prompt = {"prompt_token_ids": row.token_ids}
        try:
            engine.add_request(request_id, prompt, row.record.sampling_params)
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


def _manifest(job: BatchJob, source: RowSource, engine: LLMEngine) -> Manifest:
    args = job.engine_args
    options = {
        field.name: getattr(job, field.name)
        for field in dataclasses.fields(job)
        if field.name not in ("engine_args", "sampling_params", "shard")
    }
    template = engine.tokenizer.chat_template
    return Manifest(
        model=args.model,
        model_hash=hash_model(Path(args.model)),
        tokenizer_hash=hash_tokenizer(Path(args.tokenizer or args.model)),
        chat_template_hash=None if template is None else hash_text(template),
        options={
            **dataclasses.asdict(args),
            **options,
            **dataclasses.asdict(engine.limits.scheduler_config),
            "placement": str(engine.placement),
            "num_blocks": engine.limits.cache_config.num_blocks,
            "max_model_len": engine.limits.model_info.max_model_len,
        },
        sampling_params=job.sampling_params,
        seed=args.seed,
        inputs=describe_inputs(source),
        shard=job.shard,
    )


def _notes(job: BatchJob, tally: Tally, renamed: Mapping[str, str]) -> tuple[str, ...]:
    """What a user should know beside the figures."""
    notes = [
        f"the input's column {name!r} is in the output as {output_name!r}"
        for name, output_name in renamed.items()
    ]
    if job.expected_column is not None and tally.num_rows and not tally.num_expected:
        notes.append(f"no row has the expected column {job.expected_column!r}")
    return tuple(notes)


def _ignore(_: Progress) -> None:
    """Reports progress to no one."""
