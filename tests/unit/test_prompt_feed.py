from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from furiosa_llm.dataset.columns import ColumnMapping
from furiosa_llm.dataset.record import RawRow
from furiosa_llm.errors import DatasetError
from furiosa_llm.prompt_feed import FeedRow, PromptFeed
from furiosa_llm.sampling_params import SamplingParams
from furiosa_llm.tokenization import Tokenizer
from tests.checkpoints import make_tokenizer

NUM_BATCHES_AHEAD = 16 + 2  # one more is being read, and one is on its way out


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    path: Path = tmp_path_factory.mktemp("tokenizer")
    make_tokenizer().save_pretrained(path)
    return Tokenizer(str(path))


class Rows:
    """Rows of one size, which know how many of them are read and not taken yet."""

    def __init__(self, num_rows: int, *, num_bytes: int) -> None:
        self._num_rows = num_rows
        self._num_bytes = num_bytes
        self.num_taken = 0
        self.most_ahead = 0

    def __iter__(self) -> Iterator[RawRow]:
        for index in range(self._num_rows):
            self.most_ahead = max(self.most_ahead, index + 1 - self.num_taken)
            yield RawRow(index, {"prompt": "a"}, num_bytes=self._num_bytes)


def make_feed(rows: Iterator[RawRow], tokenizer: Tokenizer) -> PromptFeed:
    return PromptFeed(
        rows,
        tokenizer=tokenizer,
        columns=ColumnMapping(),
        defaults=SamplingParams(),
        max_model_len=100,
    )


def batches_of(feed: PromptFeed) -> Iterator[list[FeedRow]]:
    while not feed.is_exhausted:
        if batch := feed.take(wait=True):
            yield batch


@pytest.mark.parametrize(
    ("num_bytes", "rows_per_batch"), [(100 << 20, 1), (1 << 20, 1), (300 << 10, 4), (0, 64)]
)
def test_the_longer_rows_are_the_fewer_are_read_ahead(
    tokenizer: Tokenizer, num_bytes: int, rows_per_batch: int
) -> None:
    rows = Rows(40 * rows_per_batch, num_bytes=num_bytes)
    taken: list[int] = []

    with make_feed(iter(rows), tokenizer) as feed:
        for batch in batches_of(feed):
            taken += [row.source.row_index for row in batch]
            rows.num_taken = len(taken)

    assert taken == list(range(40 * rows_per_batch))
    assert rows.most_ahead <= NUM_BATCHES_AHEAD * rows_per_batch


def test_an_error_of_the_input_is_raised_where_rows_are_taken(tokenizer: Tokenizer) -> None:
    def rows() -> Iterator[RawRow]:
        yield from Rows(64, num_bytes=0)
        raise DatasetError("damaged")

    with make_feed(rows(), tokenizer) as feed:
        taken = batches_of(feed)
        assert len(next(taken)) == 64
        with pytest.raises(DatasetError, match="damaged"):
            next(taken)
