"""The rows of a batch between its input and its output."""

from __future__ import annotations

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
            feed: Brings them, with their sources if failed ones are written.
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
        self._pending: dict[str, PromptRecord] = {}  # by row index, the engine's request id
        self._previews: dict[int, str] = {}
        self._sources: dict[int, RawRow] = {}
        self._max_unfinished = engine.limits.scheduler_config.max_processing_samples

    @property
    def is_empty(self) -> bool:
        """Whether no row is in the engine, also none that it has given up."""
        return not self._pending

    def fill(self) -> None:
        """Hands rows to the engine while it has room.

        Raises:
            DatasetError: The input cannot be read on, or the output cannot be written.
            TooManyErrorsError: More rows failed than `max_errors`.
        """
        while self._engine.num_unfinished_requests < self._max_unfinished:
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
            answer = answer_of(self._pending.pop(output.request_id), output)
            self._keep(answer, self._previews.pop(answer.row_index, ""))
        self._check_errors()
        for step in self._engine.last_steps:
            self._tally.add_step(step)
            if self._step_stats is not None:
                self._step_stats.write(step)

    def _take(self, row: FeedRow) -> None:
        if row.source is not None:
            self._sources[row.row_index] = row.source
        error = row.error if isinstance(row, FailedRow) else self._try_add(row)
        if error is not None:
            where = row if isinstance(row, FailedRow) else row.record
            answer = error_answer(where.row_index, where.request_id, where.carried, error)
            self._keep(answer, row.preview)
            self._check_errors()

    def _try_add(self, row: ReadyRow) -> RequestError | None:
        request_id = str(row.record.row_index)
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
        self._pending[request_id] = row.record
        if row.preview:
            self._previews[row.record.row_index] = row.preview
        return None

    def _keep(self, answer: AnswerRow, preview: str) -> None:
        self._tally.add_row(answer, preview)
        self._writer.write(answer)
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
