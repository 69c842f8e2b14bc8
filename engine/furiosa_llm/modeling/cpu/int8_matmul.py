"""Matrix products with packed weights of 8 bits, as numba compiles them; see `matmul_kernel`."""

from __future__ import annotations

from typing import NamedTuple

import numba
import numpy as np
import numpy.typing as npt

from furiosa_llm.modeling.cpu.int8_rows import Int8Rows
from furiosa_llm.modeling.cpu.int8_tile import (
    GROUP_WIDTH,
    STEP,
    STEP_GROUPS,
    multiply_int8_tile,
)
from furiosa_llm.modeling.cpu.matmul_tile import MAX_TILE_ROWS, PANEL_WIDTH, place_ahead
from furiosa_llm.modeling.cpu.simd import Floats

_MAX_CACHED_BYTES = 1 << 18  # of activations; half of what a core's second cache holds, or less


class Int8Weights(NamedTuple):
    """Of a linear layer of I inputs and O outputs, in P panels of W: about numbers * factor."""

    packed: npt.NDArray[np.int8]  # [P, I / GROUP, W, GROUP], flat, filled up with zeros
    initial: npt.NDArray[np.int32]  # [P * W], what sums begin with
    factors: Floats  # [P * W]
    bias: Floats  # [P * W]


@numba.njit(nogil=True)
def multiply_int8(
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
    num_tokens, row_size = numbers.shape
    most_rows = max(_MAX_CACHED_BYTES // (row_size * numbers.itemsize), MAX_TILE_ROWS)
    num_blocks = -(-num_tokens // most_rows)
    for block in range(num_blocks):
        start = num_tokens * block // num_blocks
        stop = num_tokens * (block + 1) // num_blocks
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
    num_tokens, row_size = numbers.shape
    depth = weights.packed.shape[0] // weights.bias.shape[0] // STEP
    num_outputs = output.shape[1]
    step_width = STEP_GROUPS * GROUP_WIDTH
    num_tiles = -(-num_tokens // MAX_TILE_ROWS)
    flat_numbers, flat_output = numbers.reshape(-1), output.reshape(-1)
    edge = np.empty((num_tokens, PANEL_WIDTH), np.float32)  # for a panel wider than what is left
    for panel in range(panels[0], panels[1]):
        o = panel * PANEL_WIDTH
        width = min(num_outputs - o, PANEL_WIDTH)
        target, target_start, target_stride = flat_output, o, num_outputs
        if width < PANEL_WIDTH:
            target, target_start, target_stride = edge.reshape(-1), 0, PANEL_WIDTH
        for tile in range(num_tiles):
            token = num_tokens * tile // num_tiles
            multiply_int8_tile(
                num_tokens * (tile + 1) // num_tiles - token,
                flat_numbers,
                token * row_size,
                row_size,
                weights.packed,
                panel * depth * step_width,
                depth,
                place_ahead(tile, num_tiles, depth, step_width),
                weights.initial,
                weights.factors,
                weights.bias,
                o,
                scales,
                token,
                target,
                target_start + token * target_stride,
                target_stride,
            )
        if width < PANEL_WIDTH:
            for token in range(num_tokens):
                for i in range(width):
                    output[token, o + i] = edge[token, i]
