"""The prompts that a benchmark answers."""

from __future__ import annotations

import dataclasses
import itertools
import random
from array import array
from collections.abc import Sequence
from dataclasses import dataclass, field

from furiosa_llm.dataset.columns import ColumnMapping
from furiosa_llm.dataset.reader import open_input
from furiosa_llm.dataset.row_estimate import estimate_num_rows
from furiosa_llm.llm_engine import LLMEngine
from furiosa_llm.prompt_feed import FailedRow, PromptFeed
from furiosa_llm.sampling_params import RequestOutputKind, SamplingParams


@dataclass(frozen=True, slots=True, kw_only=True)
class RandomWorkload:
    """Prompts of random tokens, other ones in each repetition, so that no cache knows them.

    Attributes:
        num_prompts: How many in a repetition.
        input_len: Shortest and longest prompt; lengths in between are equally likely.
        output_len: Shortest and longest answer, likewise.
    """

    num_prompts: int = 64
    input_len: tuple[int, int] = (128, 128)
    output_len: tuple[int, int] = (64, 64)


@dataclass(frozen=True, slots=True, kw_only=True)
class FileWorkload:
    """The rows of an input, the same in each repetition: the prefix cache may know them.

    Attributes:
        input: As `open_input` takes it.
        num_prompts: Rows to take from its start; None for all.
        columns: Which columns hold the prompt and the parameters.
    """

    input: str
    num_prompts: int | None = None
    columns: ColumnMapping = field(default_factory=ColumnMapping)


Workload = RandomWorkload | FileWorkload


def expected_prompts(workload: Workload) -> int | None:
    """Returns about how many prompts a repetition has; None if that is not known.

    Raises:
        DatasetError: The input does not exist.
    """
    if workload.num_prompts is not None or isinstance(workload, RandomWorkload):
        return workload.num_prompts
    return estimate_num_rows(open_input(workload.input))


@dataclass(frozen=True, slots=True)
class BenchmarkPrompt:
    """A prompt ready for the engine."""

    token_ids: Sequence[int]
    sampling_params: SamplingParams


class PromptSource:
    """Makes the prompts of each repetition."""

    def __init__(
        self, workload: Workload, engine: LLMEngine, *, params: SamplingParams, seed: int
    ) -> None:
        """Reads the rows, where the workload is a file.

        Raises:
            DatasetError: The input cannot be read.
        """
        self.num_unreadable = 0
        self._params = dataclasses.replace(params, output_kind=RequestOutputKind.FINAL)
        self._workload = workload
        self._seed = seed
        self._vocab_size = engine.vocab_size
        self._rows: list[BenchmarkPrompt] = []
        if isinstance(workload, FileWorkload):
            self._rows = self._read(workload, engine)

    def take(self, repetition: int) -> list[BenchmarkPrompt]:
        """Returns the prompts of a repetition: of a file the same each time."""
        workload = self._workload
        if isinstance(workload, FileWorkload):
            return self._rows
        draws = random.Random(f"{self._seed} {repetition}")
        vocabulary = range(self._vocab_size)
        return [
            BenchmarkPrompt(
                array("i", draws.choices(vocabulary, k=draws.randint(*workload.input_len))),
                dataclasses.replace(
                    self._params,
                    max_tokens=draws.randint(*workload.output_len),
                    fits_context=False,
                    ignore_eos=True,
                    structured_outputs=None,  # an answer of that form has a length of its own
                ),
            )
            for _ in range(workload.num_prompts)
        ]

    def _read(self, workload: FileWorkload, engine: LLMEngine) -> list[BenchmarkPrompt]:
        feed = PromptFeed(
            itertools.islice(open_input(workload.input).rows(), workload.num_prompts),
            tokenizer=engine.tokenizer,
            columns=workload.columns,
            defaults=self._params,
            max_model_len=engine.limits.model_info.max_model_len,
        )
        prompts = []
        with feed:
            while not feed.is_exhausted:
                for row in feed.take(wait=True):
                    if isinstance(row, FailedRow):
                        self.num_unreadable += 1
                    else:
                        prompts.append(BenchmarkPrompt(row.token_ids, row.record.sampling_params))
        return prompts
