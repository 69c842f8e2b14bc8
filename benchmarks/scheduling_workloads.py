"""Rows on which the order and the admission of requests matter. The same on every machine."""

from __future__ import annotations

import random
from array import array
from dataclasses import dataclass

VOCAB_SIZE = 1000


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """A prompt, its longest answer, and how long its answer turns out to be."""

    prompt_token_ids: array[int]
    max_tokens: int
    num_output_tokens: int


def grouped(
    num_groups: int,
    num_rows: int,
    *,
    num_shared_tokens: int = 512,
    num_common_tokens: int = 0,
    num_own_tokens: tuple[int, int] = (24, 72),
    max_tokens: tuple[int, int] = (16, 48),
) -> list[Row]:
    """Returns shuffled rows.

    Args:
        num_groups: Groups.
        num_rows: Rows of each.
        num_shared_tokens: That a group shares.
        num_common_tokens: That all share, ahead of those.
        num_own_tokens: Fewest and most that a row has beside those.
        max_tokens: Shortest and longest answer.
    """
    draw = random.Random(0)
    common = _tokens(draw, num_common_tokens)
    rows = []
    for _ in range(num_groups):
        shared = common + _tokens(draw, num_shared_tokens)
        for _ in range(num_rows):
            own = _tokens(draw, draw.randint(*num_own_tokens))
            rows.append(_row(shared + own, draw.randint(*max_tokens)))
    draw.shuffle(rows)
    return rows


def mixed(
    num_rows: int,
    *,
    prompt_len: tuple[int, int],
    max_tokens: tuple[int, int],
    ends_at: tuple[float, float] = (1.0, 1.0),
) -> list[Row]:
    """Returns rows of lengths drawn from these ranges.

    Args:
        num_rows: Rows.
        prompt_len: Shortest and longest prompt.
        max_tokens: Least and most tokens that an answer may have.
        ends_at: Least and most of that share at which it ends.
    """
    draw = random.Random(0)
    rows = []
    for _ in range(num_rows):
        prompt = _tokens(draw, draw.randint(*prompt_len))
        rows.append(_row(prompt, draw.randint(*max_tokens), draw.uniform(*ends_at)))
    return rows


def few_long(num_rows: int) -> list[Row]:
    """Returns rows of which one in sixteen, the last too, has an answer eight times as long."""
    draw = random.Random(0)
    return [_row(_tokens(draw, 64), 64 if index % 16 < 15 else 512) for index in range(num_rows)]


def large_and_small(num_rows: int) -> list[Row]:
    """Returns rows of which one in eight has a prompt that is sixteen times as long."""
    draw = random.Random(0)
    lengths = [1600 if index % 8 == 0 else 100 for index in range(num_rows)]
    draw.shuffle(lengths)
    return [_row(_tokens(draw, length), draw.randint(64, 192)) for length in lengths]


def documents(num_rows: int, *, seed: int) -> list[Row]:
    """Returns prompts of very different lengths with short answers."""
    draw = random.Random(seed)
    lengths = [min(20 + round(draw.lognormvariate(5.5, 1.2)), 4000) for _ in range(num_rows)]
    return [_row(_tokens(draw, length), 16) for length in lengths]


def _row(prompt: array[int], max_tokens: int, share: float = 1.0) -> Row:
    return Row(
        prompt_token_ids=prompt,
        max_tokens=max_tokens,
        num_output_tokens=max(1, round(share * max_tokens)),
    )


def _tokens(draw: random.Random, count: int) -> array[int]:
    return array("i", draw.choices(range(3, VOCAB_SIZE), k=count))
