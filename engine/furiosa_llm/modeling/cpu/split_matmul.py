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
    count_row_blocks,
    load_inputs,
    load_sums,
    load_weights,
    multiply_bfloat16,
    row_block,
    start_tiles,
    stop_tiles,
    store_sums,
)
from furiosa_llm.modeling.cpu.matmul_kernel import FloatWeights
from furiosa_llm.modeling.cpu.matmul_tile import PANEL_WIDTH
from furiosa_llm.modeling.cpu.simd import LANES, Floats, load, prefetch, splat
from furiosa_llm.modeling.cpu.split_rows import NUM_PIECES, SPLIT_STEP, SplitRows, store_pairs

Pieces = npt.NDArray[np.int32]

_PART_STEPS = 2  # whose weights stay in a core's first cache, with those that follow
_AHEAD = _PART_STEPS * SPLIT_STEP * PANEL_WIDTH  # weights that are asked for before their time
_NUM_PRODUCTS = 6  # of pieces, in a step
_STEP_PAIRS = TILE_ROWS * PANEL_WIDTH  # of weights
_PIECE_PAIRS = _PART_STEPS * _STEP_PAIRS
_PAIR_BYTES = 4
_STEP_BYTES = NUM_PIECES * LANES * _PAIR_BYTES  # of a row
_CHUNK_STEPS = 32  # of rows that do not stay in a core's second cache as they are
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
    if panels[0] == panels[1]:
        return
    num_tokens, row_size = rows.pieces.shape
    num_steps = -(-weights.packed.shape[0] // weights.bias.shape[0] // SPLIT_STEP)
    # Where all of the rows stay in a core's second cache, so do they at any depth.
    chunk_steps = num_steps
    if count_row_blocks(num_tokens, row_size * _PAIR_BYTES) > 1:
        chunk_steps = min(num_steps, _CHUNK_STEPS)
    num_blocks = count_row_blocks(num_tokens, chunk_steps * _STEP_BYTES)
    for block in range(num_blocks):
        start, stop = row_block(num_tokens, num_blocks, block)
        _multiply_block(rows.pieces[start:stop], weights, output[start:stop], panels, chunk_steps)


@numba.njit(nogil=True)
def _multiply_block(  # noqa: C901, PLR0912, PLR0915 - a kernel; functions cost it time
    rows: Pieces,
    weights: FloatWeights,
    output: Floats,
    panels: tuple[int, int],
    chunk_steps: int,
) -> None:
    """Multiplies so few rows that some steps of theirs stay in a core's cache.

    Weights of these steps go by before others do. Arrays are not handed to other functions here,
    unless these are inlined as they are: numba would count who uses them, while the tiles wait.
    """
    num_tokens, row_size = rows.shape
    num_outputs = output.shape[1]
    num_inputs = weights.packed.shape[0] // weights.bias.shape[0]
    panel_size = num_inputs * PANEL_WIDTH
    num_steps = -(-num_inputs // SPLIT_STEP)
    num_tiles = -(-num_tokens // MAX_ROWS)
    flat_rows, flat_output = rows.reshape(-1), output.reshape(-1)
    piece = num_steps * LANES  # from one of a row to the next
    panel_sums = num_tiles * MAX_ROWS * PANEL_WIDTH
    if chunk_steps == num_steps:  # a panel is done before the next one
        sums = aligned_floats(panel_sums)
    else:
        sums = aligned_floats(panel_sums * (panels[1] - panels[0]))
    now = aligned_floats(NUM_PIECES * _PIECE_PAIRS).view(np.int32)
    then = aligned_floats(NUM_PIECES * _PIECE_PAIRS).view(np.int32)
    for unit in range(min(num_steps, _PART_STEPS) * TILE_ROWS):
        _split_unit(weights.packed, panels[0] * panel_size, panel_size, unit, now)
    start_tiles()
    num_turns = -(-num_steps // chunk_steps) * (panels[1] - panels[0])
    for turn in range(num_turns):
        chunk_start = turn // (panels[1] - panels[0]) * chunk_steps
        chunk_stop = min(chunk_start + chunk_steps, num_steps)
        place_of_panel = turn % (panels[1] - panels[0])
        panel = panels[0] + place_of_panel
        o = panel * PANEL_WIDTH
        base = 0 if chunk_steps == num_steps else place_of_panel * panel_sums
        is_whole = o + PANEL_WIDTH <= num_outputs
        for first in range(chunk_start, chunk_stop, _PART_STEPS):
            steps = min(chunk_stop - first, _PART_STEPS)
            # What to split meanwhile: the part that follows, perhaps of another panel.
            next_first, next_panel = first + steps, panel
            if next_first == chunk_stop:
                next_first, next_panel = chunk_start, panel + 1
                if next_panel == panels[1]:
                    next_first, next_panel = chunk_stop, panels[0]
            depth = next_first * SPLIT_STEP
            start = next_panel * panel_size + depth * PANEL_WIDTH
            size = (num_inputs - depth) * PANEL_WIDTH
            units = min(num_steps - next_first, _PART_STEPS) * TILE_ROWS
            work = -(-units // (num_tiles * steps * _NUM_PRODUCTS)), units
            unit = 0
            for token in range(0, num_tokens, MAX_ROWS):
                num_rows = min(num_tokens - token, MAX_ROWS)
                place = base + token * PANEL_WIDTH
                if first == 0:
                    load_sums(num_rows, weights.bias, o, 0)
                else:
                    load_sums(num_rows, sums, place, PANEL_WIDTH)
                for step in range(steps):
                    r = token * row_size + (first + step) * LANES
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
                if first + steps < num_steps or num_rows % TILE_ROWS != 0 or not is_whole:
                    store_sums(num_rows, sums, place, PANEL_WIDTH)
                else:
                    store_sums(num_rows, flat_output, token * num_outputs + o, num_outputs)
            now, then = then, now
        if chunk_stop == num_steps:
            rest = num_tokens
            if not is_whole:
                rest = 0
            elif num_tokens % TILE_ROWS != 0:
                rest = (num_tiles - 1) * MAX_ROWS
            _copy_rows(sums, base, flat_output, o, num_outputs, (rest, num_tokens))
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
    sums: Floats, base: int, output: Floats, o: int, num_outputs: int, tokens: tuple[int, int]
) -> None:
    width = min(num_outputs - o, PANEL_WIDTH)
    for token in range(tokens[0], tokens[1]):
        source, target = base + token * PANEL_WIDTH, token * num_outputs + o
        for i in range(width):
            output[target + i] = sums[source + i]
