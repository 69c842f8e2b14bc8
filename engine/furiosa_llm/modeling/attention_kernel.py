"""Paged attention as numba compiles it.

Each block is read once for all query heads and for a tile of queries, and the softmax is taken
block by block without the scores ever being stored (online softmax, Milakov and Gimelshein 2018;
FlashAttention, Dao 2022). The result of a row does not depend on the rows beside it.
"""

from __future__ import annotations

import math

import numba
import numpy as np
import numpy.typing as npt

from furiosa_llm.modeling.simd import (
    LANES,
    add,
    exponential,
    fma,
    load,
    max_of,
    maximum,
    mul,
    splat,
    store,
    sub,
    sum_of,
)
from furiosa_llm.modeling.step_layout import QUERY_TILE

Floats = npt.NDArray[np.float32]
Ints = npt.NDArray[np.int32]

_ZERO = np.float32(0.0)
_ONE = np.float32(1.0)
_LOWEST = np.float32(-1e30)


@numba.njit(nogil=True, fastmath=True)
def store_tokens(
    blocks: Floats,
    block_size: int,
    slot_mapping: npt.NDArray[np.int64],
    key: Floats,
    value: Floats,
) -> None:
    """Writes keys [T, K, D] and values [T, K, E] to their slots of [N, K, D * B + B * E]."""
    key_size = key.shape[2]
    value_start = key_size * block_size
    value_stride = (blocks.shape[2] - value_start) // block_size
    for token in range(slot_mapping.shape[0]):
        block, offset = slot_mapping[token] // block_size, slot_mapping[token] % block_size
        for head in range(key.shape[1]):
            lines = blocks[block, head]
            for d in range(key_size):
                lines[d * block_size + offset] = key[token, head, d]
            start = value_start + offset * value_stride
            for e in range(value.shape[2]):
                lines[start + e] = value[token, head, e]


@numba.njit(nogil=True, fastmath=True)
def attend(  # noqa: C901, PLR0913 - a kernel: loops nest, arrays come one by one
    query: Floats,
    query_stride: int,
    blocks: Floats,
    output: Floats,
    key_size: int,
    block_size: int,
    tasks: Ints,
    query_start_loc: Ints,
    seq_lens: Ints,
    block_tables: Ints,
    scaling: float,
    sliding_window: int,
    softcap: float,
    sinks: Floats,
    heads_per_unit: int,
    first_unit: int,
    unit_stride: int,
) -> None:
    """Computes the units `first_unit`, `first_unit + unit_stride`, … of a step's attention.

    A unit is one task (up to `QUERY_TILE` queries of one request) and some key heads.

    Args:
        query: Flat; token t's heads lie at t * query_stride, [H, D].
        query_stride: Elements from one token's queries to the next one's.
        blocks: [N, K, D * B + B * E], with the step's own keys and values already stored.
        output: [T, H, E], written; E without the padding of `blocks`.
        key_size: D.
        block_size: B.
        tasks: [*, 3], request and token range [start, stop) within the step.
        query_start_loc: [R + 1].
        seq_lens: [R].
        block_tables: [R, M].
        scaling: Factor on the scores.
        sliding_window: Most keys that a query sees; the longest sequence if there is no window.
        softcap: Bound on the scores; 0 for none.
        sinks: [H], or [0] where the layer has none.
        heads_per_unit: Key heads of a unit; a divisor of K.
        first_unit: The first unit to compute.
        unit_stride: Distance to the next one.
    """
    num_kv_heads, head_span = blocks.shape[1], blocks.shape[2]
    num_heads, value_size = output.shape[1], output.shape[2]
    group_size = num_heads // num_kv_heads
    padded_size = (head_span - key_size * block_size) // block_size
    cache = blocks.reshape(-1)
    max_rows = QUERY_TILE * group_size
    scores = np.empty(block_size, np.float32)
    row_max = np.empty(max_rows * heads_per_unit, np.float32)
    row_sum = np.empty(max_rows * heads_per_unit, np.float32)
    acc = np.empty(max_rows * heads_per_unit * padded_size, np.float32)
    units_per_task = num_kv_heads // heads_per_unit

    for unit in range(first_unit, tasks.shape[0] * units_per_task, unit_stride):
        task, first_head = unit // units_per_task, unit % units_per_task * heads_per_unit
        request, start, stop = tasks[task, 0], tasks[task, 1], tasks[task, 2]
        # Position in the request of the step's first token of this request, less its place.
        shift = seq_lens[request] - query_start_loc[request + 1]
        num_rows = (stop - start) * group_size  # of each key head
        for row in range(num_rows * heads_per_unit):
            if sinks.shape[0] > 0:
                head = (first_head + row // num_rows) * group_size + row % group_size
                row_max[row], row_sum[row] = sinks[head], _ONE
            else:
                row_max[row], row_sum[row] = _LOWEST, _ZERO
        acc[: num_rows * heads_per_unit * padded_size] = _ZERO

        first_block = max(start + shift - sliding_window + 1, 0) // block_size
        for index in range(first_block, (stop - 1 + shift) // block_size + 1):
            block_start = block_tables[request, index] * num_kv_heads * head_span
            for row in range(num_rows * heads_per_unit):
                kv_head = first_head + row // num_rows
                token = start + row % num_rows // group_size
                position = token + shift - index * block_size  # of the query, within the block
                visible_stop = min(position + 1, block_size)
                visible_start = max(position - sliding_window + 1, 0)
                if visible_start >= visible_stop:
                    continue
                keys = block_start + kv_head * head_span
                head = kv_head * group_size + row % group_size
                q = token * query_stride + head * key_size
                _score(query, q, cache, keys, key_size, np.float32(scaling), scores)
                if softcap > 0:
                    for s in range(block_size):
                        scores[s] = softcap * math.tanh(scores[s] / softcap)
                scores[:visible_start] = _LOWEST
                scores[visible_stop:] = _LOWEST
                largest = _largest(scores, row_max[row])
                block_sum = _exponentiate(scores, largest)
                shrink = np.float32(math.exp(row_max[row] - largest))
                row_sum[row] = row_sum[row] * shrink + block_sum
                row_max[row] = largest
                values = keys + key_size * block_size
                _add_values(acc, row * padded_size, shrink, scores, cache, values, padded_size)

        for row in range(num_rows * heads_per_unit):
            token = start + row % num_rows // group_size
            head = (first_head + row // num_rows) * group_size + row % group_size
            for e in range(value_size):
                output[token, head, e] = acc[row * padded_size + e] / row_sum[row]


KERNELS = (store_tokens, attend)


@numba.njit(nogil=True, inline="always")
def _score(
    query: Floats,
    q: int,
    cache: Floats,
    keys: int,
    key_size: int,
    scaling: np.float32,
    scores: Floats,
) -> None:
    """Scores of one query [D] against a block of keys [D, B]."""
    block_size = scores.shape[0]
    factor = splat(scaling)
    for s in range(0, block_size, LANES):
        sum0, sum1, sum2, sum3 = splat(_ZERO), splat(_ZERO), splat(_ZERO), splat(_ZERO)
        k = keys + s
        for d in range(0, key_size - 3, 4):
            sum0 = fma(splat(query[q + d]), load(cache, k), sum0)
            sum1 = fma(splat(query[q + d + 1]), load(cache, k + block_size), sum1)
            sum2 = fma(splat(query[q + d + 2]), load(cache, k + 2 * block_size), sum2)
            sum3 = fma(splat(query[q + d + 3]), load(cache, k + 3 * block_size), sum3)
            k += 4 * block_size
        for d in range(key_size - key_size % 4, key_size):
            sum0 = fma(splat(query[q + d]), load(cache, k), sum0)
            k += block_size
        store(scores, s, mul(add(add(sum0, sum1), add(sum2, sum3)), factor))


@numba.njit(nogil=True, inline="always")
def _largest(scores: Floats, at_least: np.float32) -> np.float32:
    largest = splat(at_least)
    for s in range(0, scores.shape[0], LANES):
        largest = maximum(largest, load(scores, s))
    return max_of(largest)  # type: ignore[no-any-return]  # numba has no types


@numba.njit(nogil=True, inline="always")
def _exponentiate(scores: Floats, largest: np.float32) -> np.float32:
    """Replaces each score s by e**(s - largest), and returns their sum."""
    total = splat(_ZERO)
    for s in range(0, scores.shape[0], LANES):
        power = exponential(sub(load(scores, s), splat(largest)))
        store(scores, s, power)
        total = add(total, power)
    return sum_of(total)  # type: ignore[no-any-return]  # numba has no types


@numba.njit(nogil=True, inline="always")
def _add_values(
    acc: Floats,
    a: int,
    shrink: np.float32,
    weights: Floats,
    cache: Floats,
    values: int,
    value_size: int,
) -> None:
    """Acc [E] = acc * shrink + weights [B] @ values [B, E]; E is a multiple of 16."""
    factor = splat(shrink)
    e = 0
    while e + 4 * LANES <= value_size:
        v = values + e
        sum0 = mul(load(acc, a + e), factor)
        sum1 = mul(load(acc, a + e + LANES), factor)
        sum2 = mul(load(acc, a + e + 2 * LANES), factor)
        sum3 = mul(load(acc, a + e + 3 * LANES), factor)
        for s in range(weights.shape[0]):
            weight = splat(weights[s])
            sum0 = fma(weight, load(cache, v), sum0)
            sum1 = fma(weight, load(cache, v + LANES), sum1)
            sum2 = fma(weight, load(cache, v + 2 * LANES), sum2)
            sum3 = fma(weight, load(cache, v + 3 * LANES), sum3)
            v += value_size
        store(acc, a + e, sum0)
        store(acc, a + e + LANES, sum1)
        store(acc, a + e + 2 * LANES, sum2)
        store(acc, a + e + 3 * LANES, sum3)
        e += 4 * LANES
    while e < value_size:
        v = values + e
        sum0 = mul(load(acc, a + e), factor)
        for s in range(weights.shape[0]):
            sum0 = fma(splat(weights[s]), load(cache, v), sum0)
            v += value_size
        store(acc, a + e, sum0)
        e += LANES
