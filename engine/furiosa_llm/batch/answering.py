"""The loop of a batch: hands rows to the engine and keeps their answers, until all are done."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable
from contextlib import ExitStack

from furiosa_llm.batch.job import BatchJob
from furiosa_llm.batch.rows_in_flight import RowsInFlight
from furiosa_llm.batch.tally import Tally
from furiosa_llm.dataset.failed_rows import FailedRowsWriter
from furiosa_llm.dataset.reader import RowSource
from furiosa_llm.dataset.step_stats import StepStatsWriter
from furiosa_llm.dataset.writer import AnswerWriter
from furiosa_llm.errors import RunStoppedError
from furiosa_llm.interrupts import GracefulStop
from furiosa_llm.llm_engine import LLMEngine
from furiosa_llm.prompt_feed import PromptFeed
from furiosa_llm.sampling_params import RequestOutputKind

_logger = logging.getLogger(__name__)


def answer_rows(
    job: BatchJob,
    *,
    engine: LLMEngine,
    source: RowSource,
    writer: AnswerWriter,
    tally: Tally,
    stop: GracefulStop,
    on_step: Callable[[], None],
) -> None:
    """Answers every row that is not saved yet, in whatever order the engine finishes them.

    Args:
        job: What to do.
        engine: Answers the rows.
        source: Brings them.
        writer: Keeps the answers.
        tally: Counts them and the engine's steps.
        stop: Tells when to end early.
        on_step: Called after every step.

    Raises:
        DatasetError: The input cannot be read on, or a file cannot be written.
        EngineError: The engine can go on no more.
        RunStoppedError: There was a reason to stop before all were answered.
        TooManyErrorsError: More rows failed than `max_errors`.
    """
    with ExitStack() as stack:
        feed = stack.enter_context(_feed(job, engine, source, writer))
        failed_rows = step_stats = None
        if job.failed_rows is not None:
            failed_rows = stack.enter_context(FailedRowsWriter.open(job.failed_rows))
            failed_rows.write_those(source, writer.saved.failed)
        if job.step_stats is not None:
            step_stats = stack.enter_context(StepStatsWriter.open(job.step_stats))
        rows = RowsInFlight(
            job,
            engine=engine,
            feed=feed,
            writer=writer,
            tally=tally,
            failed_rows=failed_rows,
            step_stats=step_stats,
        )
        is_stopping = False
        while engine.has_unfinished_requests() or not feed.is_exhausted:
            if stop.reason is None:
                rows.fill()
            elif not is_stopping:
                is_stopping = True
                _drop_what_waits(engine, stop)
            if is_stopping and not (engine.has_unfinished_requests() and stop.seconds_left > 0):
                break
            writer.checkpoint()
            if not engine.has_unfinished_requests():
                continue
            rows.step()
            on_step()
        if not (rows.is_empty and feed.is_exhausted):
            raise RunStoppedError(f"stopped by {stop.reason} before all rows were done")


def _feed(job: BatchJob, engine: LLMEngine, source: RowSource, writer: AnswerWriter) -> PromptFeed:
    done = writer.saved.done
    return PromptFeed(
        (row for row in source.rows() if row.row_index not in done),
        tokenizer=engine.tokenizer,
        columns=job.columns,
        defaults=dataclasses.replace(job.sampling_params, output_kind=RequestOutputKind.FINAL),
        max_model_len=engine.limits.model_info.max_model_len,
        num_previews=job.num_examples,
    )


def _drop_what_waits(engine: LLMEngine, stop: GracefulStop) -> None:
    engine.abort_waiting()
    _logger.warning(
        "stopping (%s): rows that run may go on for %.0f s; a second signal stops at once",
        stop.reason,
        stop.seconds_left,
    )
