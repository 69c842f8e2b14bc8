from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from furiosa_llm.dataset.reader import open_input
from furiosa_llm.dataset.row_estimate import estimate_num_rows
from furiosa_llm.dataset.shard import WHOLE, Shard
from furiosa_llm.errors import ConfigError


@given(st.integers(0, 200), st.integers(1, 20))
def test_every_row_is_in_exactly_one_shard(num_rows: int, count: int) -> None:
    shards = [Shard(number, count) for number in range(1, count + 1)]

    taken = [[row for row in range(num_rows) if shard.has(row)] for shard in shards]

    assert sorted(row for rows in taken for row in rows) == list(range(num_rows))
    for shard, rows in zip(shards, taken, strict=True):
        assert shard.num_rows_of(num_rows) == len(rows)
        assert list(shard.row_indexes(0, len(rows))) == rows


@pytest.mark.parametrize("text", ["", "1", "1/", "/2", "a/b", "1/2/3", "-1/2", "1.5/2", "1" * 5000])
def test_what_is_no_shard_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="is no shard; write I/N"):
        Shard.parse(text)


@pytest.mark.parametrize("text", ["0/2", "3/2", "0/0", "1/999999"])
def test_a_shard_that_cannot_be_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="does not exist"):
        Shard.parse(text)


def test_rows_keep_their_number_and_files_are_read_through(tmp_path: Path) -> None:
    for name, rows in (("a", 4), ("b", 5)):
        (tmp_path / f"{name}.jsonl").write_text('{"prompt": "x"}\n' * rows)

    source = open_input(str(tmp_path), shard=Shard(2, 4))

    assert [row.row_index for row in source.rows()] == [1, 5]
    assert source.count_rows() == 2
    assert estimate_num_rows(source) == 2
    assert [row.row_index for row in open_input(str(tmp_path), shard=WHOLE).rows()] == [*range(9)]
