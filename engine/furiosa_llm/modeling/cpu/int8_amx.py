"""Products of matrices of 8 bits in tiles (see `amx`), to the bit what `int8_matmul` computes."""

from __future__ import annotations

import numba
import numpy as np
import numpy.typing as npt

from furiosa_llm.modeling.cpu.amx import (
    MAX_ROWS,
    TILE_BYTES,
    aligned_floats,
    count_row_blocks,
    load_inputs,
    load_sums,
    load_weights,
    multiply_bytes,
    row_block,
    start_tiles,
    stop_tiles,
    store_sums,
)
from furiosa_llm.modeling.cpu.int8_matmul import Int8Weights
from furiosa_llm.modeling.cpu.int8_rows import Int8Rows
from furiosa_llm.modeling.cpu.matmul_tile import PANEL_WIDTH
from furiosa_llm.modeling.cpu.simd import Floats, prefetch

_STEP_WEIGHTS = TILE_BYTES * PANEL_WIDTH  # that are multiplied at once


@numba.njit(nogil=True)
def multiply_int8_tiles(
    rows: Int8Rows, weights: Int8Weights, output: Floats, panels: tuple[int, int]
) -> None:
    """Writes some panels of output [T, O] = rows [T, I] @ weight [I, O] + bias [O].

    Args:
        rows: The activations.
        weights: See `round_weights`.
        output: [T, O].
        panels: The first one to write, and the one after the last.
    """
    numbers, scales = rows
    if panels[0] == panels[1]:
        return
    num_tokens, row_size = numbers.shape
    num_blocks = count_row_blocks(num_tokens, row_size)
    for block in range(num_blocks):
        start, stop = row_block(num_tokens, num_blocks, block)
        _multiply_block(
            numbers[start:stop], scales[start:stop], weights, output[start:stop], panels
        )


@numba.njit(nogil=True)
def _multiply_block(
    numbers: npt.NDArray[np.uint8],
    scales: Floats,
    weights: Int8Weights,
    output: Floats,
    panels: tuple[int, int],
) -> None:
    """Multiplies so few rows that they stay in a core's cache while weights go by."""
    num_tokens, row_size = numbers.shape
    flat_numbers = numbers.reshape(-1)
    panel_size = weights.packed.shape[0] // weights.bias.shape[0] * PANEL_WIDTH
    num_steps = panel_size // _STEP_WEIGHTS
    num_tiles = -(-num_tokens // MAX_ROWS)
    sums = aligned_floats(MAX_ROWS * PANEL_WIDTH).view(np.int32)
    start_tiles()
    for panel in range(panels[0], panels[1]):
        following = (panel + 1) * panel_size
        lines_ahead = -(-_STEP_WEIGHTS // TILE_BYTES // num_tiles) if panel + 1 < panels[1] else 0
        for token in range(0, num_tokens, MAX_ROWS):
            num_rows = min(num_tokens - token, MAX_ROWS)
            load_sums(num_rows, weights.initial, panel * PANEL_WIDTH, 0)
            for step in range(num_steps):
                i = token * row_size + step * TILE_BYTES
                load_inputs(num_rows, flat_numbers, i, row_size)
                load_weights(weights.packed, panel * panel_size + step * _STEP_WEIGHTS)
                multiply_bytes(num_rows)
                for _ in range(lines_ahead):
                    prefetch(weights.packed, following)
                    following += TILE_BYTES
            store_sums(num_rows, sums, 0, PANEL_WIDTH)
            _scale(sums, scales[token : token + num_rows], weights, output[token:], panel)
    stop_tiles()


@numba.njit(nogil=True)
def _scale(
    sums: npt.NDArray[np.int32], scales: Floats, weights: Int8Weights, output: Floats, panel: int
) -> None:
    o = panel * PANEL_WIDTH
    width = min(output.shape[1] - o, PANEL_WIDTH)
    factors, bias = weights.factors[o : o + width], weights.bias[o : o + width]
    for row in range(scales.shape[0]):
        target, scale = output[row, o : o + width], scales[row]
        for i in range(width):
            target[i] = np.float32(sums[row * PANEL_WIDTH + i]) * factors[i] * scale + bias[i]
