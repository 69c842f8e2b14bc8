"""Reads and tokenizes rows ahead of the engine, in a thread of its own."""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from furiosa_llm.dataset.columns import ColumnMapping
from furiosa_llm.dataset.record import PromptRecord, RawRow, identify, parse_row
from furiosa_llm.errors import RequestError
from furiosa_llm.sampling_params import SamplingParams
from furiosa_llm.tokenization import Tokenizer

_ROWS_PER_BATCH = 64
_BYTES_PER_BATCH = 1 << 20  # about, so that the batches ahead are bounded by bytes, too
_BATCHES_AHEAD = 16
_POLL_SECONDS = 0.1
_PREVIEW_CHARACTERS = 400
_MAX_SHARED_PARAMS = 1024


@dataclass(frozen=True, slots=True)
class ReadyRow:
    """A row that the engine can take: its record, without the prompt, and the prompt's tokens."""

    source: RawRow
    record: PromptRecord
    token_ids: Sequence[int]
    preview: str


@dataclass(frozen=True, slots=True)
class FailedRow:
    """A row that cannot be answered, and why."""

    source: RawRow
    request_id: str
    carried: Mapping[str, object]
    error: RequestError
    preview: str


FeedRow = ReadyRow | FailedRow


class PromptFeed:
    """The rows of an input, parsed and tokenized, in input order.

    Use it as a context manager: leaving it ends the thread. Errors that end the input are raised
    where the rows are taken.
    """

    def __init__(
        self,
        rows: Iterable[RawRow],
        *,
        tokenizer: Tokenizer,
        columns: ColumnMapping,
        defaults: SamplingParams,
        max_model_len: int,
        num_previews: int = 0,
    ) -> None:
        """Prepares to read rows.

        Args:
            rows: In input order.
            tokenizer: Of the model.
            columns: What the columns mean.
            defaults: The parameters of a row that brings none.
            max_model_len: Prompts that surely have more tokens are not tokenized.
            num_previews: So many of the first rows keep the start of their prompt.
        """
        self._rows = iter(rows)
        self._tokenizer = tokenizer
        self._columns = columns
        self._defaults = defaults
        self._max_model_len = max_model_len
        self._num_previews = num_previews
        # Many rows with parameters of their own have the same ones: keep each set once.
        self._shared_params: dict[SamplingParams, SamplingParams] = {}
        self._queue: queue.Queue[list[FeedRow] | BaseException | None] = queue.Queue(_BATCHES_AHEAD)
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="prompt-feed", daemon=True)
        self.is_exhausted = False

    def __enter__(self) -> PromptFeed:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopping.set()
        self._thread.join(timeout=1.0)  # it may hang in a read of standard input

    def take(self, *, wait: bool) -> list[FeedRow]:
        """Returns the next rows; an empty list when there are none, or none yet.

        Args:
            wait: Wait a moment for rows, or for the end of the input.

        Raises:
            DatasetError: The input cannot be read on.
        """
        if self.is_exhausted:
            return []
        try:
            batch = self._queue.get(block=wait, timeout=_POLL_SECONDS)
        except queue.Empty:
            return []
        if isinstance(batch, BaseException):
            raise batch
        if batch is None:
            self.is_exhausted = True
            return []
        return batch

    def _run(self) -> None:
        try:
            while rows := self._read():
                if not self._put(list(self._prepare(rows))):
                    return
            self._put(None)
        except BaseException as error:  # noqa: BLE001 - raised again where the rows are taken
            self._put(error)

    def _read(self) -> list[RawRow]:
        """Reads a row, and more as long as they are few and short."""
        rows: list[RawRow] = []
        num_bytes = 0
        for row in self._rows:
            rows.append(row)
            num_bytes += row.num_bytes
            if len(rows) == _ROWS_PER_BATCH or num_bytes >= _BYTES_PER_BATCH:
                break
        return rows

    def _put(self, batch: list[FeedRow] | BaseException | None) -> bool:
        while not self._stopping.is_set():
            try:
                self._queue.put(batch, timeout=_POLL_SECONDS)
            except queue.Full:
                continue
            return True
        return False

    def _prepare(self, rows: list[RawRow]) -> Iterator[FeedRow]:
        parsed = [self._parse(row) for row in rows]
        texts = [
            entry.prompt
            for entry in parsed
            if isinstance(entry, PromptRecord) and entry.prompt is not None
        ]
        encoded = iter(self._tokenizer.encode_batch(texts) if texts else [])
        for row, entry in zip(rows, parsed, strict=True):
            if isinstance(entry, FailedRow):
                yield entry
            elif entry.prompt is not None:
                yield self._ready(row, entry, next(encoded))
            elif entry.messages is not None:
                yield self._encode_chat(row, entry, entry.messages)
            else:
                assert entry.prompt_token_ids is not None
                yield self._ready(row, entry, entry.prompt_token_ids)

    def _parse(self, row: RawRow) -> PromptRecord | FailedRow:
        try:
            record = parse_row(row, self._columns, self._defaults)
            if record.prompt is not None:
                self._check_length(record.prompt)
            return record
        except RequestError as error:
            request_id, carried = identify(row, self._columns)
            return FailedRow(row, request_id, carried, error, "")

    def _encode_chat(
        self, row: RawRow, record: PromptRecord, messages: Sequence[Mapping[str, object]]
    ) -> FeedRow:
        try:
            text = self._tokenizer.render_chat(messages)
            self._check_length(text)
            return self._ready(row, record, self._tokenizer.encode_rendered(text))
        except RequestError as error:
            preview = self._preview(record)
            return FailedRow(row, record.request_id, record.carried, error, preview)

    def _check_length(self, text: str) -> None:
        self._tokenizer.check_length(text, max_num_tokens=self._max_model_len)

    def _ready(self, row: RawRow, record: PromptRecord, token_ids: Sequence[int]) -> ReadyRow:
        if len(self._shared_params) >= _MAX_SHARED_PARAMS:
            self._shared_params.clear()
        without_prompt = PromptRecord(
            record.row_index,
            record.request_id,
            None,
            None,
            None,
            self._shared_params.setdefault(record.sampling_params, record.sampling_params),
            record.carried,
        )
        return ReadyRow(row, without_prompt, token_ids, self._preview(record))

    def _preview(self, record: PromptRecord) -> str:
        if record.row_index >= self._num_previews:
            return ""
        if record.prompt is not None:
            return record.prompt[:_PREVIEW_CHARACTERS]
        if record.messages:
            return str(record.messages[-1].get("content", ""))[:_PREVIEW_CHARACTERS]
        return f"{len(record.prompt_token_ids or ())} tokens"
