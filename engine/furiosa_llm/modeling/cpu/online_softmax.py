"""The softmax of a query's scores, block by block, as they are computed.

What the weights multiply is summed up meanwhile, so that the scores of one block are all that is
ever stored (online softmax, Milakov and Gimelshein 2018). Functions for kernels alone.
"""

from __future__ import annotations

import math

import numba
import numpy as np

from furiosa_llm.modeling.cpu.simd import (
    LANES,
    LOG2_E,
    Floats,
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
    row: int,
    largest: Floats,
    totals: Floats,
    sums: Floats,
    value_size: int,
) -> None:
    """Replaces the scores of a query against the tokens of a block by their weights.

    Args:
        scores: A flat array, where they begin, and how many there are, a multiple of 16.
        visible: The first token of the block that the query sees, and the one after the last,
            which is no more than there are. It sees none where the first is not before the last.
        softcap: Bound on the scores; 0 for none.
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
        for i in range(start, stop, LANES):
            store(array, i, splat(_ZERO))
        return
    if softcap > 0:
        _cap(scores, softcap)
    is_whole = visible[0] == 0 and visible[1] == width
    if not is_whole:
        _hide(scores, visible, LOWEST)
    old = largest[row]
    peaks = splat(old)
    for i in range(start, stop, LANES):
        peaks = maximum(peaks, load(array, i))
    if exceeds(peaks, old + _SLACK):
        largest[row] = max_of(peaks)
        shrink = exponential2(splat(old - largest[row]))
        _scale(totals, row * LANES, LANES, shrink)
        _scale(sums, row * value_size, value_size, shrink)
    for i in range(start, stop, LANES):
        store(array, i, exponential2(sub(load(array, i), splat(largest[row]))))
    if not is_whole:
        _hide(scores, visible, _ZERO)
    total = load(totals, row * LANES)
    for i in range(start, stop, LANES):
        total = add(total, load(array, i))
    store(totals, row * LANES, total)


@numba.njit(nogil=True, inline="always")
def _cap(scores: tuple[Floats, int, int], softcap: float) -> None:
    array, start, width = scores
    for i in range(start, start + width):
        array[i] = softcap * LOG2_E * math.tanh(array[i] / softcap)


@numba.njit(nogil=True, inline="always")
def _hide(scores: tuple[Floats, int, int], visible: tuple[int, int], number: np.float32) -> None:
    """Writes a number over what is not visible."""
    array, start, width = scores
    for i in range(0, width, LANES):
        kept = between(load(array, start + i), visible[0] - i, visible[1] - i, number)
        store(array, start + i, kept)


@numba.njit(nogil=True, inline="always")
def _scale(numbers: Floats, start: int, size: int, factor: object) -> None:
    for i in range(start, start + size, LANES):
        store(numbers, i, mul(load(numbers, i), factor))
