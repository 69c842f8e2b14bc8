"""Reads all rows of an input, checks them, and counts what they need."""

from __future__ import annotations

import dataclasses
import random
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

from furiosa_llm.batch.shared_prefixes import SharedPrefixes
from furiosa_llm.batch.summary import FirstError
from furiosa_llm.config import EngineArgs
from furiosa_llm.dataset.columns import ColumnMapping
from furiosa_llm.dataset.reader import RowSource
from furiosa_llm.errors import RequestError
from furiosa_llm.llm_engine import LLMEngine
from furiosa_llm.prompt_feed import FailedRow, FeedRow, PromptFeed
from furiosa_llm.prompt_intake import PromptIntake
from furiosa_llm.request import TokenizedPrompt
from furiosa_llm.sampling_params import RequestOutputKind, SamplingParams

_REPORT_SECONDS = 5.0
_SEED = 0  # so that a plan is the same each time

Report = Callable[[str], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanSpec:
    """What is looked at; see `BatchJob`.

    Attributes:
        engine_args: How to load and run the model.
        sampling_params: For every row, as far as it does not bring its own.
        input: Where the rows are.
        columns: Which columns hold the prompt and the parameters.
        output: Where the answers would go; None if that is not known yet.
        num_samples: Rows to answer, to learn how long all of them take.
    """

    engine_args: EngineArgs
    sampling_params: SamplingParams
    input: str
    columns: ColumnMapping = field(default_factory=ColumnMapping)
    output: str | None = None
    num_samples: int = 0


class RowCensus:
    """Counts what the rows of an input need, and keeps some of them.

    Attributes:
        num_rows: Rows of the input.
        error_counts: Those that cannot be answered, by `error_code`.
        first_errors: The first of each code.
        prompt_lengths: How many of the others have a prompt of so many tokens.
        max_output_tokens: Tokens that all answers have at most.
        max_blocks: KV-cache blocks that the longest prompt takes with its answer, at most.
        shared: What prompts begin with in common.
        samples: Rows to answer, from all over the input.
    """

    def __init__(self, spec: PlanSpec, engine: LLMEngine) -> None:
        self.num_rows = 0
        self.error_counts: Counter[str] = Counter()
        self.first_errors: dict[str, FirstError] = {}
        self.prompt_lengths: Counter[int] = Counter()
        self.max_output_tokens = self.max_blocks = 0
        self.shared = SharedPrefixes(engine.limits.cache_config.block_size)
        self.samples: list[TokenizedPrompt] = []
        self._spec, self._limits, self._tokenizer = spec, engine.limits, engine.tokenizer
        self._intake = PromptIntake(engine.tokenizer, engine.limits)
        self._random = random.Random(_SEED)
        self._num_ready = 0

    def read(self, source: RowSource, report: Report) -> None:
        """Reads and checks all rows."""
        last_report = time.monotonic()
        feed = PromptFeed(
            source.rows(),
            tokenizer=self._tokenizer,
            columns=self._spec.columns,
            defaults=dataclasses.replace(
                self._spec.sampling_params, output_kind=RequestOutputKind.FINAL
            ),
            max_model_len=self._limits.model_info.max_model_len,
        )
        with feed:
            while not feed.is_exhausted:
                for row in feed.take(wait=True):
                    self._add(row)
                if time.monotonic() - last_report > _REPORT_SECONDS:
                    last_report = time.monotonic()
                    report(f"reading rows: {self.num_rows:,} so far")

    def _add(self, row: FeedRow) -> None:
        index = row.source.row_index
        self.num_rows += 1
        if isinstance(row, FailedRow):
            self._add_error(index, row.error)
            return
        prompt = {"prompt_token_ids": row.token_ids}
        params = row.record.sampling_params
        try:
            taken = self._intake.take(str(index), prompt, params, arrival_time=0.0)
        except RequestError as error:
            self._add_error(index, error)
            return
        num_tokens = len(taken.prompt_token_ids)
        self.prompt_lengths[num_tokens] += 1
        self.max_output_tokens += taken.max_tokens * params.num_drawn
        num_blocks = self._limits.cache_config.num_blocks_for(num_tokens + taken.max_tokens)
        self.max_blocks = max(self.max_blocks, num_blocks)
        self.shared.add(taken.prompt_token_ids)
        self._maybe_keep(taken)

    def _add_error(self, row_index: int, error: RequestError) -> None:
        self.error_counts[error.code] += 1
        self.first_errors.setdefault(error.code, FirstError(row_index, str(error)))

    def _maybe_keep(self, prompt: TokenizedPrompt) -> None:
        """Keeps each row with the same chance (Vitter 1985, reservoir sampling)."""
        self._num_ready += 1
        if len(self.samples) < self._spec.num_samples:
            self.samples.append(prompt)
            return
        place = self._random.randrange(self._num_ready)
        if place < self._spec.num_samples:
            self.samples[place] = prompt
