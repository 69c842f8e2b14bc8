"""Products of float32 matrices in tiles, from pieces of 16 bits; see `split_rows` and `amx`.

Weights are split as they are read, a part of a panel at a time, which then stays in a core's first
cache for all rows. While the tiles multiply one part, the next one is split bit by bit. A row of
the result is the same to the bit whatever rows are beside it.
"""

from __future__ import annotations

import numba
import numpy as np
import numpy.typing as npt

from furiosa_llm.modeling.cpu.amx import (
    MAX_ROWS,
    TILE_ROWS,
    aligned_floats,
    load_inputs,
    load_sums,
    load_weights,
    multiply_bfloat16,
    start_tiles,
    stop_tiles,
    store_sums,
)
from furiosa_llm.modeling.cpu.layer_kernels import Floats
from furiosa_llm.modeling.cpu.matmul_kernel import FloatWeights
from furiosa_llm.modeling.cpu.matmul_tile import PANEL_WIDTH
from furiosa_llm.modeling.cpu.simd import LANES, load, prefetch, splat
from furiosa_llm.modeling.cpu.split_rows import NUM_PIECES, SPLIT_STEP, SplitRows, store_pairs

Pieces = npt.NDArray[np.int32]

_PART_STEPS = 4
_AHEAD = _PART_STEPS * SPLIT_STEP * PANEL_WIDTH  # weights that are asked for before their time
_NUM_PRODUCTS = 6  # of pieces, in a step
_STEP_PAIRS = TILE_ROWS * PANEL_WIDTH  # of weights
_PIECE_PAIRS = _PART_STEPS * _STEP_PAIRS
_MAX_CACHED_PAIRS = 1 << 18  # of rows; half of what a core's second cache holds, or less
_ZERO = np.float32(0.0)


@numba.njit(nogil=True)
def multiply_split(
    rows: SplitRows, weights: FloatWeights, output: Floats, panels: tuple[int, int]
) -> None:
    """Writes some panels of output [T, O] = rows [T, I] @ weight [I, O] + bias [O].

    Args:
        rows: The activations.
        weights: See `pack`.
        output: [T, O].
        panels: The first one to write, and the one after the last.
    """
    num_tokens, row_size = rows.pieces.shape
    num_tiles = -(-num_tokens // MAX_ROWS)
    num_blocks = -(-num_tiles // max(_MAX_CACHED_PAIRS // row_size // MAX_ROWS, 1))
    for block in range(num_blocks):
        start = num_tiles * block // num_blocks * MAX_ROWS
        stop = min(num_tiles * (block + 1) // num_blocks * MAX_ROWS, num_tokens)
        _multiply_block(rows.pieces[start:stop], weights, output[start:stop], panels)


@numba.njit(nogil=True)
def _multiply_block(  # noqa: PLR0915 - a kernel; what other functions took, numba would count
    rows: Pieces, weights: FloatWeights, output: Floats, panels: tuple[int, int]
) -> None:
    """Multiplies so few rows that they stay in a core's cache while weights go by."""
    num_tokens, row_size = rows.shape
    num_outputs = output.shape[1]
    num_inputs = weights.packed.shape[0] // weights.bias.shape[0]
    panel_size = num_inputs * PANEL_WIDTH
    num_steps = -(-num_inputs // SPLIT_STEP)
    num_parts = -(-num_steps // _PART_STEPS)
    num_tiles = -(-num_tokens // MAX_ROWS)
    flat_rows, flat_output = rows.reshape(-1), output.reshape(-1)
    piece = num_steps * LANES  # from one of a row to the next
    sums = aligned_floats(num_tiles * MAX_ROWS * PANEL_WIDTH)
    now = aligned_floats(NUM_PIECES * _PIECE_PAIRS).view(np.int32)
    then = aligned_floats(NUM_PIECES * _PIECE_PAIRS).view(np.int32)
    for unit in range(min(num_steps, _PART_STEPS) * TILE_ROWS):
        _split_unit(weights.packed, panels[0] * panel_size, panel_size, unit, now)
    start_tiles()
    for panel in range(panels[0], panels[1]):
        o = panel * PANEL_WIDTH
        is_whole = o + PANEL_WIDTH <= num_outputs
        for part in range(num_parts):
            steps = min(num_steps - part * _PART_STEPS, _PART_STEPS)
            # What to split meanwhile: the part that follows, perhaps of the next panel.
            depth = (part + 1) % num_parts * _PART_STEPS * SPLIT_STEP
            start = ((panel + (part + 1) // num_parts) * num_inputs + depth) * PANEL_WIDTH
            size = (num_inputs - depth) * PANEL_WIDTH
            units = min(num_steps - depth // SPLIT_STEP, _PART_STEPS) * TILE_ROWS
            if part + 1 == num_parts and panel + 1 == panels[1]:
                units = 0
            work = -(-units // (num_tiles * steps * _NUM_PRODUCTS)), units
            unit = 0
            for token in range(0, num_tokens, MAX_ROWS):
                num_rows = min(num_tokens - token, MAX_ROWS)
                place = token * PANEL_WIDTH
                if part == 0:
                    load_sums(num_rows, weights.bias, o, 0)
                else:
                    load_sums(num_rows, sums, place, PANEL_WIDTH)
                for step in range(steps):
                    r = token * row_size + (part * _PART_STEPS + step) * LANES
                    w = step * _STEP_PAIRS
                    # Tiles are loaded anew only where they change from one product to the next.
                    load_inputs(num_rows, flat_rows, r, row_size)
                    load_weights(now, w)
                    multiply_bfloat16(num_rows)
                    unit = _split_some(weights.packed, start, size, unit, work, then)
                    load_weights(now, w + 2 * _PIECE_PAIRS)
                    multiply_bfloat16(num_rows)
                    unit = _split_some(weights.packed, start, size, unit, work, then)
                    load_weights(now, w + _PIECE_PAIRS)
                    multiply_bfloat16(num_rows)
                    unit = _split_some(weights.packed, start, size, unit, work, then)
                    load_inputs(num_rows, flat_rows, r + piece, row_size)
                    multiply_bfloat16(num_rows)
                    unit = _split_some(weights.packed, start, size, unit, work, then)
                    load_weights(now, w)
                    multiply_bfloat16(num_rows)
                    unit = _split_some(weights.packed, start, size, unit, work, then)
                    load_inputs(num_rows, flat_rows, r + 2 * piece, row_size)
                    multiply_bfloat16(num_rows)
                    unit = _split_some(weights.packed, start, size, unit, work, then)
                if part + 1 < num_parts or num_rows % TILE_ROWS != 0 or not is_whole:
                    store_sums(num_rows, sums, place, PANEL_WIDTH)
                else:
                    store_sums(num_rows, flat_output, token * num_outputs + o, num_outputs)
            now, then = then, now
        first = 0
        if is_whole:
            last = (num_tiles - 1) * MAX_ROWS
            first = num_tokens if (num_tokens - last) % TILE_ROWS == 0 else last
        _copy_rows(sums, flat_output, o, num_outputs, (first, num_tokens))
    stop_tiles()


@numba.njit(nogil=True, inline="always")
def _split_some(
    weights: Floats, start: int, size: int, unit: int, work: tuple[int, int], split: Pieces
) -> int:
    """Splits some units more, if so many are left, and returns how many are done."""
    until = min(unit + work[0], work[1])
    while unit < until:
        _split_unit(weights, start, size, unit, split)
        unit += 1
    return unit


@numba.njit(nogil=True, inline="always")
def _split_unit(weights: Floats, start: int, size: int, unit: int, split: Pieces) -> None:
    """Splits the weights of two inputs, of `size` that begin at `start`; zeros stand for others."""
    even = unit * 2 * PANEL_WIDTH
    odd = even + PANEL_WIDTH
    for lane in range(0, PANEL_WIDTH, LANES):
        prefetch(weights, start + even + lane + _AHEAD)
        prefetch(weights, start + odd + lane + _AHEAD)
        one, other = splat(_ZERO), splat(_ZERO)
        if even < size:
            one = load(weights, start + even + lane)
        if odd < size:
            other = load(weights, start + odd + lane)
        store_pairs(one, other, split, unit * PANEL_WIDTH + lane, _PIECE_PAIRS)


@numba.njit(nogil=True)
def _copy_rows(
    sums: Floats, output: Floats, o: int, num_outputs: int, tokens: tuple[int, int]
) -> None:
    width = min(num_outputs - o, PANEL_WIDTH)
    for token in range(tokens[0], tokens[1]):
        source, target = token * PANEL_WIDTH, token * num_outputs + o
        for i in range(width):
            output[target + i] = sums[source + i]
