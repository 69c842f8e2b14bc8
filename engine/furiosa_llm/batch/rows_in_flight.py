"""The rows of a batch between its input and its output."""

from __future__ import annotations

from dataclasses import dataclass

from furiosa_llm.batch.job import BatchJob
from furiosa_llm.batch.tally import Tally
from furiosa_llm.dataset.answer import AnswerRow, answer_of, error_answer
from furiosa_llm.dataset.failed_rows import FailedRowsWriter
from furiosa_llm.dataset.record import PromptRecord, RawRow
from furiosa_llm.dataset.step_stats import StepStatsWriter
from furiosa_llm.dataset.target import OutputTarget
from furiosa_llm.dataset.writer import AnswerWriter
from furiosa_llm.errors import RequestError, TooManyErrorsError
from furiosa_llm.llm_engine import LLMEngine
from furiosa_llm.prompt_feed import FailedRow, FeedRow, PromptFeed, ReadyRow

MAX_BYTES_IN_FLIGHT = 256 << 20  # of input, about, that waits in the engine


@dataclass(frozen=True, slots=True)
class _RowInEngine:
    record: PromptRecord
    preview: str
    num_bytes: int
    source: RawRow | None  # where failed rows are written


class RowsInFlight:
    """Takes rows from a feed into the engine, and their answers from there to the writer."""

    def __init__(
        self,
        job: BatchJob,
        *,
        engine: LLMEngine,
        feed: PromptFeed,
        writer: AnswerWriter,
        tally: Tally,
        failed_rows: FailedRowsWriter | None,
        step_stats: StepStatsWriter | None,
    ) -> None:
        """Joins the parts.

        Args:
            job: For the limits of its rows.
            engine: Answers them.
            feed: Brings them.
            writer: Keeps the answers.
            tally: Counts them, and the engine's steps.
            failed_rows: Keeps the rows that failed.
            step_stats: Keeps the account of the steps.
        """
        self._job = job
        self._engine = engine
        self._feed = feed
        self._writer = writer
        self._tally = tally
        self._failed_rows = failed_rows
        self._step_stats = step_stats
        self._in_engine: dict[str, _RowInEngine] = {}  # by row index, the engine's request id
        self._num_bytes = 0  # of the rows in the engine
        self._max_unfinished = engine.limits.scheduler_config.max_processing_samples

    @property
    def is_empty(self) -> bool:
        """Whether no row is in the engine, also none that it has given up."""
        return not self._in_engine

    def fill(self) -> None:
        """Hands rows to the engine while it has room and they are not too long together.

        Raises:
            DatasetError: The input cannot be read on, or the output cannot be written.
            TooManyErrorsError: More rows failed than `max_errors`.
        """
        while (
            self._engine.num_unfinished_requests < self._max_unfinished
            and self._num_bytes < MAX_BYTES_IN_FLIGHT
        ):
            rows = self._feed.take(wait=not self._engine.has_unfinished_requests())
            if not rows:
                return
            for row in rows:
                self._take(row)

    def step(self) -> None:
        """Runs a step of the engine and keeps what it brings.

        Raises:
            DatasetError: The output cannot be written.
            EngineError: The engine can go on no more.
            TooManyErrorsError: More rows failed than `max_errors`.
        """
        for output in self._engine.step():
            row = self._in_engine.pop(output.request_id)
            self._num_bytes -= row.num_bytes
            self._keep(answer_of(row.record, output), row.source, row.preview)
        self._check_errors()
        for step in self._engine.last_steps:
            self._tally.add_step(step)
            if self._step_stats is not None:
                self._step_stats.write(step)

    def _take(self, row: FeedRow) -> None:
        self._tally.has_own_params |= self._job.columns.params_name in (row.source.data or ())
        error = row.error if isinstance(row, FailedRow) else self._try_add(row)
        if error is not None:
            where = row if isinstance(row, FailedRow) else row.record
            row_index = row.source.row_index
            answer = error_answer(row_index, where.request_id, where.carried, error)
            self._keep(answer, row.source, row.preview)
            self._check_errors()

    def _try_add(self, row: ReadyRow) -> RequestError | None:
        request_id = str(row.source.row_index)
        prompt = {"prompt_token_ids": row.token_ids}
        try:
            self._engine.add_request(
                request_id,
                prompt,
                row.record.sampling_params,
                timeout_seconds=self._job.row_timeout_seconds,
            )
        except RequestError as error:
            return error
        source = row.source if self._failed_rows is not None else None
        num_bytes = row.source.num_bytes
        self._in_engine[request_id] = _RowInEngine(row.record, row.preview, num_bytes, source)
        self._num_bytes += num_bytes
        return None

    def _keep(self, answer: AnswerRow, source: RawRow | None, preview: str) -> None:
        self._tally.add_row(answer, preview)
        self._writer.write(answer)
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
