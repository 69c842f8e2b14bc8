"""Paged attention as numba compiles it.

Each block is read once for all query heads and for a tile of queries, and the softmax is taken
block by block without the scores ever being stored (online softmax, Milakov and Gimelshein 2018;
FlashAttention, Dao 2022). The result of a row does not depend on the rows beside it.
"""

from __future__ import annotations

from typing import Any

import numba
import numpy as np
import numpy.typing as npt

from furiosa_llm.modeling.cpu.attention_memory import AttentionMemory
from furiosa_llm.modeling.cpu.cache_cells import (
    Cells,
    numbers_per_cell,
    padded_value_size,
    put_inputs,
)
from furiosa_llm.modeling.cpu.float_tile import tile_product
from furiosa_llm.modeling.cpu.layer_kernels import put_tokens
from furiosa_llm.modeling.cpu.matmul_tile import (
    HAS_32_WIDE_REGISTERS,
    MAX_TILE_ROWS,
    PANEL_VECTORS,
    PANEL_WIDTH,
    READS_AHEAD,
)
from furiosa_llm.modeling.cpu.online_softmax import LOWEST, take_scores
from furiosa_llm.modeling.cpu.simd import LANES, LOG2_E, Floats, load, splat, store, sum_of

Ints = npt.NDArray[np.int32]

_ZERO = np.float32(0.0)
_ONE = np.float32(1.0)
# Tiles of so few rows, but twice as wide, fit into the registers. Where these are many, that serves
# any number of rows best: sums are short here, and each weight that is read goes into six of them.
_WIDE_ROWS = 6 if HAS_32_WIDE_REGISTERS else 3
_PANEL_ROWS = 10 if HAS_32_WIDE_REGISTERS else MAX_TILE_ROWS

# With few rows, memory is what they wait for; see `READS_AHEAD`. Where registers are half as wide,
# too, what a processor reads ahead of its own accord serves blocks best.
_multiply_wide = tile_product(
    2 * PANEL_VECTORS,
    fetches_ahead=HAS_32_WIDE_REGISTERS and not READS_AHEAD,
    max_rows=_WIDE_ROWS,
)
_multiply_panel = tile_product(PANEL_VECTORS, fetches_ahead=False, max_rows=_PANEL_ROWS)
_multiply_column = tile_product(1, fetches_ahead=False, max_rows=_PANEL_ROWS)
_NOTHING_AHEAD = (0, 0)
_NULL = np.intp(0)  # a literal in a tuple is a type of its own: `_multiply` would be compiled twice


@numba.njit(nogil=True, fastmath=True, error_model="numpy")
def store_tokens(
    blocks: Cells,
    block_size: int,
    slot_mapping: npt.NDArray[np.int64],
    key: Floats,
    value: Floats,
) -> None:
    """Writes keys [T, K, D] and values [T, K, E] to their slots of `blocks`; see `LayerCache`."""
    num_tokens, num_heads, key_size = key.shape
    value_size = value.shape[2]
    keys = key.reshape(num_tokens, num_heads * key_size)
    values = value.reshape(num_tokens, num_heads * value_size)
    for token in range(num_tokens):
        block, offset = slot_mapping[token] // block_size, slot_mapping[token] % block_size
        for head in range(num_heads):
            put_tokens(
                blocks[block, head],
                block_size,
                offset,
                (token, token + 1),
                (keys, head * key_size, (head + 1) * key_size),
                (values, head * value_size, (head + 1) * value_size),
            )


# numba counts the references to an array with atomic operations, which would take longer than the
# arithmetic of a row's softmax. So no references are counted here.


@numba.njit(nogil=True, fastmath=True, error_model="numpy", _nrt=False)
def attend(  # noqa: C901, PLR0913, PLR0915 - a kernel: arrays come one by one
    query: Floats,
    query_stride: int,
    blocks: Cells,
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
    memory: AttentionMemory,
    first_unit: int,
    unit_stride: int,
) -> None:
    """Computes the units `first_unit`, `first_unit + unit_stride`, … of a step's attention.

    A unit is one task (up to `QUERY_TILE` queries of one request) and some key heads.

    Args:
        query: Flat; token t's heads lie at t * query_stride, [H, D].
        query_stride: Elements from one token's queries to the next one's.
        blocks: [N, K, D * B + B * E], with the step's own keys and values already stored; pairs
            are half as many.
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
        memory: For `unit_stride` threads.
        first_unit: The first unit to compute, which is the place of the thread among them.
        unit_stride: Distance to the next one.
    """
    queries, query_inputs = memory.queries[first_unit], memory.query_inputs[first_unit]
    scores, weights = memory.scores[first_unit], memory.weights[first_unit]
    largest, totals = memory.largest[first_unit], memory.totals[first_unit]
    sums, zeros = memory.sums[first_unit], memory.zeros
    num_kv_heads, head_span = blocks.shape[1], blocks.shape[2]
    num_numbers = numbers_per_cell(blocks)
    key_lines = key_size // num_numbers
    num_heads, value_size = output.shape[1], output.shape[2]
    group_size = num_heads // num_kv_heads
    padded_size = padded_value_size(blocks, key_size, block_size)
    num_inputs = numbers_per_cell(query_inputs)
    cache = blocks.reshape(-1)
    units_per_task = num_kv_heads // heads_per_unit
    # Powers are taken of two, as a processor does it.
    scale = np.float32(scaling if softcap > 0 else scaling * LOG2_E)

    num_units = tasks.shape[0] * units_per_task
    for unit in range(first_unit, num_units, unit_stride):
        task, first_head = unit // units_per_task, unit % units_per_task * heads_per_unit
        request, start, stop = tasks[task, 0], tasks[task, 1], tasks[task, 2]
        # Position in the request of the step's first token of this request, less its place.
        shift = seq_lens[request] - query_start_loc[request + 1]
        num_rows = (stop - start) * group_size  # of each key head
        for row in range(num_rows * heads_per_unit):
            token = start + row % num_rows // group_size
            head = (first_head + row // num_rows) * group_size + row % group_size
            q = token * query_stride + head * key_size
            for d in range(key_size):
                queries[row * key_size + d] = query[q + d] * scale
            largest[row] = LOWEST
            store(totals, row * LANES, splat(_ZERO))
            if sinks.shape[0] > 0:
                largest[row] = sinks[head] * np.float32(LOG2_E)
                totals[row * LANES] = _ONE
        put_inputs(queries, query_inputs, 0, num_rows * heads_per_unit * key_size)
        sums[: num_rows * heads_per_unit * padded_size] = _ZERO

        first_block = _first_block(start + shift, sliding_window, block_size)
        stop_block = (stop - 1 + shift) // block_size + 1
        # What comes after the last block: the first one of the next unit, if there is one.
        next_start = block_tables[request, stop_block - 1] * num_kv_heads * head_span
        if unit + unit_stride < num_units:
            next_task = (unit + unit_stride) // units_per_task
            next_request = tasks[next_task, 0]
            position = tasks[next_task, 1] + seq_lens[next_request]
            position -= query_start_loc[next_request + 1]
            next_block = _first_block(position, sliding_window, block_size)
            next_start = block_tables[next_request, next_block] * num_kv_heads * head_span
            next_start += (unit + unit_stride) % units_per_task * heads_per_unit * head_span
        for index in range(first_block, stop_block):
            block_start = block_tables[request, index] * num_kv_heads * head_span
            next_keys = next_start
            if index + 1 < stop_block:
                next_keys = block_tables[request, index + 1] * num_kv_heads * head_span
                next_keys += first_head * head_span
            num_visible = min(stop + shift - index * block_size, block_size)  # by any row
            width = -(-num_visible // LANES) * LANES
            value_lines = -(-num_visible // num_numbers)
            for kv_head in range(heads_per_unit):
                keys = block_start + (first_head + kv_head) * head_span
                values = keys + key_lines * block_size
                following = keys + head_span if kv_head + 1 < heads_per_unit else next_keys
                first = kv_head * num_rows
                _multiply(
                    num_rows,
                    (query_inputs, first * key_size // num_inputs, key_size // num_inputs),
                    (cache, keys, block_size, key_lines, width, values),
                    (zeros, _NULL, _NULL),
                    (scores, _NULL, block_size),
                )
                row = 0
                for token in range(start, stop):
                    # Of the last token that its queries see, within the block.
                    position = token + shift - index * block_size
                    visible = (max(position - sliding_window + 1, 0), min(position + 1, width))
                    for _ in range(group_size):
                        take_scores(
                            (scores, row * block_size, width),
                            visible,
                            softcap,
                            weights,
                            first + row,
                            largest,
                            totals,
                            sums,
                            padded_size,
                        )
                        row += 1
                _multiply(
                    num_rows,
                    (weights, _NULL, block_size // num_inputs),
                    (cache, values, padded_size, value_lines, padded_size, following),
                    (sums, first * padded_size, padded_size),
                    (sums, first * padded_size, padded_size),
                )

        for row in range(num_rows * heads_per_unit):
            token = start + row % num_rows // group_size
            head = (first_head + row // num_rows) * group_size + row % group_size
            factor = _ONE / sum_of(load(totals, row * LANES))
            for e in range(value_size):
                output[token, head, e] = sums[row * padded_size + e] * factor


KERNELS = (store_tokens, attend)


@numba.njit(nogil=True, inline="always")
def _first_block(position: int, sliding_window: int, block_size: int) -> int:
    """Returns the place of the first block that a query at a position sees."""
    return max(position - sliding_window + 1, 0) // block_size


@numba.njit(nogil=True, _nrt=False)
def _multiply(
    num_rows: int,
    inputs: tuple[Cells, int, int],
    weights: tuple[Cells, int, int, int, int, int],
    initial: tuple[Floats, int, int],
    output: tuple[Floats, int, int],
) -> None:
    """Writes output = initial + inputs @ weights.

    Matrices are a flat array, where they begin, and how far apart their rows lie; that of weights
    also how many rows and columns it has (a multiple of 16), and where the next ones begin.
    """
    matrix, start, stride, depth, width, following = weights
    column = 0
    if num_rows <= _WIDE_ROWS or HAS_32_WIDE_REGISTERS:
        while column + 2 * PANEL_WIDTH <= width:
            for row in range(0, num_rows, _WIDE_ROWS):
                _multiply_wide(
                    *(min(num_rows - row, _WIDE_ROWS), *_place(inputs, row, 0)),
                    *(matrix, start + column, stride, depth, (following - start, stride)),
                    *(*_place(initial, row, column), *_place(output, row, column)),
                )
            column += 2 * PANEL_WIDTH
    while column + PANEL_WIDTH <= width:
        for row in range(0, num_rows, _PANEL_ROWS):
            _multiply_panel(
                *(min(num_rows - row, _PANEL_ROWS), *_place(inputs, row, 0)),
                *(matrix, start + column, stride, depth, _NOTHING_AHEAD),
                *(*_place(initial, row, column), *_place(output, row, column)),
            )
        column += PANEL_WIDTH
    while column < width:
        for row in range(0, num_rows, _PANEL_ROWS):
            _multiply_column(
                *(min(num_rows - row, _PANEL_ROWS), *_place(inputs, row, 0)),
                *(matrix, start + column, stride, depth, _NOTHING_AHEAD),
                *(*_place(initial, row, column), *_place(output, row, column)),
            )
        column += LANES


@numba.njit(nogil=True, inline="always")
def _place(matrix: tuple[Any, int, int], row: int, column: int) -> tuple[Any, int, int]:
    """Returns the part of a matrix that begins at a row and a column."""
    array, start, stride = matrix
    return array, start + row * stride + column, stride
