"""What lies between a layer's matrix products, each in one pass, as numba compiles it."""

from __future__ import annotations

import math

import numba
import numpy as np
import numpy.typing as npt

from furiosa_llm.modeling.cpu.cache_cells import (
    Cells,
    key_cell,
    numbers_per_cell,
    padded_value_size,
    put_value,
)
from furiosa_llm.modeling.cpu.simd import (
    LANES,
    Floats,
    add,
    div,
    exponential,
    load,
    mul,
    prefetch_to_write,
    splat,
    store,
    sub,
)

_ZERO = np.float32(0.0)
_ONE = np.float32(1.0)
_TILE = 16  # tokens whose keys are turned into columns at once


@numba.njit(nogil=True, fastmath=True, error_model="numpy", _nrt=False)
def normalize(inputs: Floats, weight: Floats, epsilon: float, output: Floats) -> None:
    """Writes x * weight / sqrt(mean(x**2) + epsilon) for each row x of [T, I] (RMSNorm)."""
    for row in range(inputs.shape[0]):
        total = _ZERO
        for i in range(inputs.shape[1]):
            total += inputs[row, i] * inputs[row, i]
        factor = np.float32(1.0 / math.sqrt(total / inputs.shape[1] + epsilon))
        for i in range(inputs.shape[1]):
            output[row, i] = inputs[row, i] * factor * weight[i]


@numba.njit(nogil=True, fastmath=True, error_model="numpy", _nrt=False)
def gate(gates: Floats, ups: Floats, output: Floats) -> None:
    """Writes silu(gate) * up for each element of [T, I]; rows may lie any distance apart."""
    size = gates.shape[1]
    for row in range(gates.shape[0]):
        for i in range(0, size - size % LANES, LANES):
            x = load(gates[row], i)
            power = exponential(sub(splat(_ZERO), x))
            gated = div(mul(x, load(ups[row], i)), add(splat(_ONE), power))
            store(output[row], i, gated)
        for i in range(size - size % LANES, size):
            x = gates[row, i]
            output[row, i] = x * ups[row, i] / (_ONE + np.float32(math.exp(-x)))


@numba.njit(nogil=True, fastmath=True, error_model="numpy", _nrt=False)
def rotate_and_store(  # noqa: PLR0913 - a kernel: arrays come one by one
    projected: Floats,
    num_heads: int,
    key_size: int,
    query_norm: Floats,
    key_norm: Floats,
    epsilon: float,
    cos: Floats,
    sin: Floats,
    slot_mapping: npt.NDArray[np.int64],
    blocks: Cells,
    block_size: int,
) -> None:
    """Rotates queries and keys by their positions, and writes keys and values to their slots.

    Args:
        projected: [T, (H + 2 * K) * D], queries, keys and values; the queries are rotated in
            place, the keys too.
        num_heads: H.
        key_size: D, of values too.
        query_norm: [D], weights of an RMSNorm over each query head; [0] for none.
        key_norm: [D] or [0], of each key head.
        epsilon: Of both.
        cos: [T, P], of the first P <= D elements of a head (RoFormer, Su et al. 2021), whose two
            halves make the pairs.
        sin: [T, P].
        slot_mapping: [T].
        blocks: [N, K, D * B + B * E], E = D padded; pairs are half as many.
        block_size: B.
    """
    num_kv_heads, num_tokens = blocks.shape[1], slot_mapping.shape[0]
    start = 0
    while start < num_tokens:
        stop = start + 1  # of tokens whose slots follow each other in one block
        while (
            stop < num_tokens
            and stop - start < _TILE
            and slot_mapping[stop] == slot_mapping[stop - 1] + 1
            and slot_mapping[stop] % block_size != 0
        ):
            stop += 1
        if stop < num_tokens:
            _fetch_slot(blocks, block_size, key_size, slot_mapping[stop])
        for token in range(start, stop):
            for head in range(num_heads + num_kv_heads):
                part = projected[token, head * key_size : (head + 1) * key_size]
                _normalize_head(part, query_norm if head < num_heads else key_norm, epsilon)
                _rotate(part, cos[token], sin[token])
        block, offset = slot_mapping[start] // block_size, slot_mapping[start] % block_size
        for head in range(num_kv_heads):
            key = (num_heads + head) * key_size
            value = key + num_kv_heads * key_size
            put_tokens(
                blocks[block, head],
                block_size,
                offset,
                (start, stop),
                (projected, key, key + key_size),
                (projected, value, value + key_size),
            )
        start = stop


@numba.njit(nogil=True, inline="always")
def put_tokens(
    lines: Cells,
    block_size: int,
    offset: int,
    tokens: tuple[int, int],
    keys: tuple[Floats, int, int],
    values: tuple[Floats, int, int],
) -> None:
    """Writes keys and values of tokens that follow each other to a block.

    Args:
        lines: Of the block and a head, D * B for keys and B * E, E padded, for values; pairs are
            half as many.
        block_size: B.
        offset: Place of the first token in the block.
        tokens: The first one, and the one after the last.
        keys: [T, *], and the columns [start, stop) of the head, D of them.
        values: Likewise.
    """
    key_rows, first, stop = keys
    value_rows = values[0]
    num_numbers = numbers_per_cell(lines)
    key_lines = (stop - first) // num_numbers
    value_stride = padded_value_size(lines, stop - first, block_size)
    for line in range(key_lines):
        for token in range(tokens[0], tokens[1]):
            cell = key_cell(lines, key_rows, token, first + line * num_numbers)
            lines[line * block_size + offset + token - tokens[0]] = cell
    for token in range(tokens[0], tokens[1]):
        place = offset + token - tokens[0]
        start = key_lines * block_size + place // num_numbers * value_stride
        put_value(lines, start, place, value_rows, token, values[1:])


KERNELS = (normalize, gate, rotate_and_store)


@numba.njit(nogil=True, inline="always")
def _fetch_slot(blocks: Cells, block_size: int, key_size: int, slot: int) -> None:
    """Asks for the lines that a token's keys and values go to: they lie far apart."""
    num_numbers = numbers_per_cell(blocks)
    block, offset = slot // block_size, slot % block_size
    value_start = key_size // num_numbers * block_size
    value_stride = padded_value_size(blocks, key_size, block_size)
    for head in range(blocks.shape[1]):
        lines = blocks[block, head]
        for line in range(key_size // num_numbers):
            prefetch_to_write(lines, line * block_size + offset)
        for e in range(0, value_stride, LANES):
            prefetch_to_write(lines, value_start + offset // num_numbers * value_stride + e)


@numba.njit(nogil=True, fastmath=True, error_model="numpy", inline="always")
def _normalize_head(head: Floats, weight: Floats, epsilon: float) -> None:
    if weight.shape[0] == 0:
        return
    total = _ZERO
    for d in range(head.shape[0]):
        total += head[d] * head[d]
    factor = np.float32(1.0 / math.sqrt(total / head.shape[0] + epsilon))
    for d in range(head.shape[0]):
        head[d] = head[d] * factor * weight[d]


@numba.njit(nogil=True, fastmath=True, error_model="numpy", inline="always")
def _rotate(head: Floats, cos: Floats, sin: Floats) -> None:
    half = cos.shape[0] // 2
    for d in range(half):
        first, second = head[d], head[half + d]
        head[d] = first * cos[d] - second * sin[d]
        head[half + d] = second * cos[half + d] + first * sin[half + d]
