"""Prompt tokens in common, against a cache of blocks that forgets nothing."""

from __future__ import annotations

from array import array

import pytest
from hypothesis import given
from hypothesis import strategies as st

from furiosa_llm.batch import shared_prefixes
from furiosa_llm.batch.shared_prefixes import SharedPrefixes

PROMPTS = st.lists(st.lists(st.integers(0, 1), min_size=1, max_size=12), max_size=8)


@given(PROMPTS, st.integers(1, 4))
def test_it_counts_whole_blocks_that_earlier_prompts_begin_with(
    prompts: list[list[int]], block_size: int
) -> None:
    shared = SharedPrefixes(block_size)
    expected = 0
    known: set[tuple[int, ...]] = set()
    for prompt in prompts:
        shared.add(array("i", prompt))
        stops = range(block_size, len(prompt), block_size)  # one token is left to compute
        prefixes = [tuple(prompt[:stop]) for stop in stops]
        expected += block_size * sum(prefix in known for prefix in prefixes)
        known.update(prefixes)

    assert shared.num_tokens == expected


def test_of_very_many_blocks_it_counts_too_few(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shared_prefixes, "_MOST_KNOWN", 1)
    shared = SharedPrefixes(2)

    for _ in range(2):
        shared.add([1, 2, 3, 4, 5])

    assert shared.num_tokens == 2
