"""The softmax of a query's scores, block by block, as they are computed.

What the weights multiply is summed up meanwhile, so that the scores of one block are all that is
ever stored (online softmax, Milakov and Gimelshein 2018). Functions for kernels alone.
"""

from __future__ import annotations

import math
from typing import Any

import numba
import numpy as np
from numba import types
from numba.extending import overload

from furiosa_llm.modeling.cpu.cache_cells import Cells, Pairs, numbers_per_cell, store_pairs
from furiosa_llm.modeling.cpu.simd import (
    LANES,
    LOG2_E,
    Floats,
    about_exponential2,
    add,
    between,
    exceeds,
    exponential2,
    load,
    max_of,
    maximum,
    mul,
    splat,
    store,
    sub,
)

LOWEST = np.float32(-1e30)

_ZERO = np.float32(0.0)
# Weights may exceed 1 by this power of two before sums are scaled to the new largest score, which
# is seldom needed then (as in FlashAttention-4).
_SLACK = np.float32(8.0)


@numba.njit(nogil=True, fastmath=True, error_model="numpy", inline="always")
def take_scores(  # noqa: PLR0913 - of a kernel
    scores: tuple[Floats, int, int],
    visible: tuple[int, int],
    softcap: float,
    weights: Cells,
    row: int,
    largest: Floats,
    totals: Floats,
    sums: Floats,
    value_size: int,
) -> None:
    """Turns the scores of a query against the tokens of a block into their weights.

    Args:
        scores: A flat array, where they begin, and how many there are, a multiple of 16.
        visible: The first token of the block that the query sees, and the one after the last,
            which is no more than there are. It sees none where the first is not before the last.
        softcap: Bound on the scores; 0 for none.
        weights: Written, at the same place: either the array of the scores, or pairs.
        row: The place of the query among R.
        largest: [R], about the largest score of each so far; `LOWEST` before the first one. A
            weight is 2**(score - largest).
        totals: [R * LANES], sums of the weights so far, lane by lane.
        sums: [R * E], of the values times their weights so far.
        value_size: E.
    """
    array, start, width = scores
    stop = start + width
    if visible[0] >= visible[1]:
        num_numbers = numbers_per_cell(weights)
        for i in range(start // num_numbers, stop // num_numbers):
            weights[i] = 0
        return
    if softcap > 0:
        _cap(scores, softcap)
    if visible[0] > 0 or visible[1] < width:
        _hide(scores, visible)
    old = largest[row]
    peaks = splat(old)
    for i in range(start, stop, LANES):
        peaks = maximum(peaks, load(array, i))
    if exceeds(peaks, old + _SLACK):
        largest[row] = max_of(peaks)
        shrink = exponential2(splat(old - largest[row]))
        _scale(totals, row * LANES, LANES, shrink)
        _scale(sums, row * value_size, value_size, shrink)
    total = _weigh(scores, visible, splat(largest[row]), weights)
    store(totals, row * LANES, add(load(totals, row * LANES), total))


@numba.njit(nogil=True, inline="always")
def _cap(scores: tuple[Floats, int, int], softcap: float) -> None:
    array, start, width = scores
    for i in range(start, start + width):
        array[i] = softcap * LOG2_E * math.tanh(array[i] / softcap)


@numba.njit(nogil=True, inline="always")
def _hide(scores: tuple[Floats, int, int], visible: tuple[int, int]) -> None:
    """Leaves nothing of scores that are not visible."""
    array, start, width = scores
    for i in range(0, width, LANES):
        seen = between(load(array, start + i), visible[0] - i, visible[1] - i, LOWEST)
        store(array, start + i, seen)


def _weigh(
    scores: tuple[Floats, int, int], visible: tuple[int, int], largest: Any, weights: Cells
) -> Any:
    """Writes 2**(score - largest) for what is visible, else 0. Returns their sums, lane by lane."""


@overload(_weigh, inline="always", strict=False)
def _weigh_in_kernels(scores: Any, visible: Any, largest: Any, weights: Any) -> Any:
    return _weigh_pairs if weights.dtype == types.int32 else _weigh_floats


def _weigh_floats(
    scores: tuple[Floats, int, int], visible: tuple[int, int], largest: Any, weights: Floats
) -> Any:
    array, start, width = scores
    is_whole = visible[0] == 0 and visible[1] == width
    total = splat(_ZERO)
    for i in range(0, width, LANES):
        power = exponential2(sub(load(array, start + i), largest))
        if not is_whole:
            power = between(power, visible[0] - i, visible[1] - i, _ZERO)
        store(weights, start + i, power)
        total = add(total, power)
    return total


def _weigh_pairs(
    scores: tuple[Floats, int, int], visible: tuple[int, int], largest: Any, weights: Pairs
) -> Any:
    array, start, width = scores
    is_whole = visible[0] == 0 and visible[1] == width and width % (2 * LANES) == 0
    total = splat(_ZERO)
    for i in range(0, width, 2 * LANES):
        first = about_exponential2(sub(load(array, start + i), largest))
        second = about_exponential2(sub(load(array, start + i + LANES), largest))
        if not is_whole:
            first = between(first, visible[0] - i, visible[1] - i, _ZERO)
            second = between(second, visible[0] - i - LANES, visible[1] - i - LANES, _ZERO)
        store_pairs(first, second, weights, (start + i) // 2)
        total = add(total, add(first, second))
    return total


@numba.njit(nogil=True, inline="always")
def _scale(numbers: Floats, start: int, size: int, factor: object) -> None:
    for i in range(start, start + size, LANES):
        store(numbers, i, mul(load(numbers, i), factor))
