"""Draws tokens at random, as numba compiles it.

Sorting a vocabulary takes longer than computing its scores. What top-k and top-p ask for is only
where to cut: the least weight of those that stay. It is found bit by bit, from how many tokens
there are, or how much weight, with the same leading bits (a radix select). Tokens that weigh the
same are treated the same.
"""

from __future__ import annotations

from typing import Any

import numba
import numpy as np
import numpy.typing as npt

from furiosa_llm.modeling.cpu.simd import (
    LANES,
    LOG2_E,
    Floats,
    exponential2,
    load,
    maximum,
    mul,
    splat,
    store,
    sub,
)

Places = npt.NDArray[np.int64]
Doubles = npt.NDArray[np.float64]
_Bits = npt.NDArray[np.uint32]

_ZERO = np.float32(0.0)
_NO_WEIGHT = np.float32(2.0**-125)  # what a weight is no larger than where there is none
_CHUNK = 512  # tokens whose weights are added up at once
_SHIFTS = (21, 10, 0)  # of the bits of a float32 that are looked at together: 11, 11 and 10
_NUM_BUCKETS = 1 << 11


@numba.njit(nogil=True, error_model="numpy")
def draw_tokens(  # noqa: PLR0913 - a kernel: arrays come one by one
    logits: Floats,
    largest: Floats,
    rows: Places,
    temperatures: Floats,
    top_ks: Places,
    top_ps: Floats,
    min_ps: Floats,
    draws: Doubles,
    chosen: Places,
) -> None:
    """Draws a token for each of some rows of logits [S, V].

    Of a row without a finite score, any token.

    Args:
        logits: [S, V].
        largest: [S], the largest score of each row.
        rows: [s], those to draw for, and what follows is of them.
        temperatures: [s], above 0.
        top_ks: [s], tokens that stay; 0 or less for all.
        top_ps: [s], the share of the weight of these that the likeliest must make up to stay; 1 for
            all.
        min_ps: [s], the share of the likeliest one's weight that a token must have to stay.
        draws: [s], uniform in (0, 1].
        chosen: [S], written at `rows`.
    """
    size = logits.shape[1]
    weights = np.empty(-(-size // LANES) * LANES, np.float32)
    likeliest, candidates = np.empty_like(weights), np.empty_like(weights)
    buckets = np.empty(_NUM_BUCKETS, np.float64)
    for i in range(rows.shape[0]):
        row = rows[i]
        _weigh(logits[row], largest[row], temperatures[i], weights)
        least, left = _ZERO, weights
        if 0 < top_ks[i] < size:
            least = _least_of(left, np.float64(top_ks[i]), True, buckets, candidates)
            left = likeliest[: _take(left, least, likeliest)]
        if top_ps[i] < 1:
            target = np.float64(top_ps[i]) * _total(left, least)
            least = max(_least_of(left, target, False, buckets, candidates), least)
        chosen[row] = _pick(weights, max(least, min_ps[i]), draws[i], size)


KERNELS = (draw_tokens,)


@numba.njit(nogil=True)
def _weigh(scores: Floats, largest: np.float32, temperature: np.float32, weights: Floats) -> None:
    """Writes exp((score - largest) / temperature), and 0 where that is next to nothing."""
    size, factor = scores.shape[0], np.float32(LOG2_E / temperature)
    whole = size - size % LANES
    for i in range(0, whole, LANES):
        store(weights, i, _weights_of(load(scores, i), largest, factor))
    if whole < size:
        rest = np.full(LANES, -np.inf, np.float32)
        for i in range(whole, size):
            rest[i - whole] = scores[i]
        store(weights, whole, _weights_of(load(rest, 0), largest, factor))


@numba.njit(nogil=True, inline="always")
def _weights_of(scores: Any, largest: np.float32, factor: np.float32) -> Any:
    power = exponential2(mul(sub(scores, splat(largest)), splat(factor)))
    return maximum(sub(power, splat(_NO_WEIGHT)), splat(_ZERO))


@numba.njit(nogil=True)
def _least_of(
    weights: Floats, target: float, counts: bool, buckets: Doubles, candidates: Floats
) -> np.float32:
    """Returns the least of the largest weights which together reach a target.

    Args:
        weights: [n].
        target: How many they must be, or what they must weigh.
        counts: Whether it is a number.
        buckets: Memory for sums.
        candidates: [n], memory for weights that the least may be one of.
    """
    above, last_shift, least = 0.0, 32, 0
    left = weights
    for shift in _SHIFTS:
        bits: _Bits = left.view(np.uint32)
        num_buckets = 1 << (last_shift - shift)
        buckets[:num_buckets] = 0.0
        for i in range(left.shape[0]):
            own = (np.int64(bits[i]) >> shift) & (num_buckets - 1)
            buckets[own] += 1.0 if counts else np.float64(left[i])
        reached = 0
        for bucket in range(num_buckets - 1, -1, -1):
            if buckets[bucket] > 0:
                reached = bucket
                if above + buckets[bucket] >= target:
                    break
                above += buckets[bucket]
        least = (least << (last_shift - shift)) | reached
        size = 0
        for i in range(left.shape[0]):
            if np.int64(bits[i]) >> shift == least:
                candidates[size] = left[i]
                size += 1
        left, last_shift = candidates[:size], shift
    return left[0] if left.shape[0] > 0 else _ZERO


@numba.njit(nogil=True)
def _take(weights: Floats, least: np.float32, taken: Floats) -> int:
    """Writes the weights that are no smaller than the least, and returns how many they are."""
    size = 0
    for i in range(weights.shape[0]):
        if weights[i] >= least:
            taken[size] = weights[i]
            size += 1
    return size


@numba.njit(nogil=True, fastmath={"reassoc", "contract"})
def _total(weights: Floats, least: np.float32) -> float:
    """Returns the sum of the weights, without those that are smaller than the least."""
    total = 0.0
    for i in range(weights.shape[0]):
        total += np.float64(weights[i]) if weights[i] >= least else 0.0
    return total


@numba.njit(nogil=True)
def _pick(weights: Floats, least: np.float32, draw: float, size: int) -> int:
    """Returns the token at which the sum of the weights so far reaches a share of all of them."""
    num_chunks = -(-size // _CHUNK)
    sums = np.empty(num_chunks, np.float64)
    for chunk in range(num_chunks):
        sums[chunk] = _total(weights[chunk * _CHUNK : (chunk + 1) * _CHUNK], least)
    target, total = draw * sums.sum(), 0.0
    chunk, last = 0, 0
    while chunk + 1 < num_chunks and total + sums[chunk] < target:
        total += sums[chunk]
        chunk += 1
    while chunk > 0 and not sums[chunk] > 0:  # rounded sums: the target is beyond all of them
        chunk -= 1
    for i in range(chunk * _CHUNK, min((chunk + 1) * _CHUNK, size)):
        if weights[i] >= least and weights[i] > 0:
            last = i
            total += weights[i]
            if total >= target:
                break
    return last
