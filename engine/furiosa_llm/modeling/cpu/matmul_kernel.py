"""Matrix products with packed weights, as numba compiles them.

Weights lie in panels of `PANEL_WIDTH` outputs, in the order in which they are read: once for all
tokens of a step. A row of the result is the same to the bit whatever rows are beside it.
"""

from __future__ import annotations

from typing import NamedTuple

import numba
import numpy as np
import torch

from furiosa_llm.modeling.cpu import huge_pages
from furiosa_llm.modeling.cpu.float_tile import tile_product
from furiosa_llm.modeling.cpu.matmul_tile import (
    MAX_TILE_ROWS,
    PANEL_VECTORS,
    PANEL_WIDTH,
    place_ahead,
)
from furiosa_llm.modeling.cpu.simd import Floats

_MAX_DEPTH = 2048  # so that a part of a panel stays in a core's own cache for all tiles of rows
_MAX_CACHED_INPUTS = 1 << 16  # elements; half of what such a cache holds, or less

_multiply_tile = tile_product(PANEL_VECTORS, fetches_ahead=True)


class FloatWeights(NamedTuple):
    """Of a linear layer of I inputs and O outputs, in P panels of W."""

    packed: Floats  # [P, I, W], flat; the last panel is filled up with zeros
    bias: Floats  # [P * W]


def pack(weight: torch.Tensor, bias: torch.Tensor | None) -> FloatWeights:
    """Lays a weight [O, I] and a bias [O], or zeros in its place, out in panels."""
    num_outputs, num_inputs = weight.shape
    num_panels = -(-num_outputs // PANEL_WIDTH)
    panels = huge_pages.zeros((num_panels, num_inputs, PANEL_WIDTH), np.float32)
    for panel in range(num_panels):
        rows = weight[panel * PANEL_WIDTH : (panel + 1) * PANEL_WIDTH]
        panels[panel, :, : len(rows)] = rows.t().numpy()
    padded = np.zeros(num_panels * PANEL_WIDTH, np.float32)
    if bias is not None:
        padded[:num_outputs] = bias.numpy()
    return FloatWeights(panels.reshape(-1), padded)


@numba.njit(nogil=True)
def multiply_floats(
    inputs: Floats, weights: FloatWeights, output: Floats, panels: tuple[int, int]
) -> None:
    """Writes some panels of output [T, O] = inputs [T, I] @ weight [I, O] + bias [O].

    Args:
        inputs: [T, I].
        weights: See `pack`.
        output: [T, O].
        panels: The first one to write, and the one after the last.
    """
    num_tokens, num_inputs = inputs.shape
    depth = max(min(num_inputs, _MAX_DEPTH), 1)
    most_rows = max(_MAX_CACHED_INPUTS // depth, MAX_TILE_ROWS)
    num_blocks = -(-num_tokens // most_rows)
    for block in range(num_blocks):
        start = num_tokens * block // num_blocks
        stop = num_tokens * (block + 1) // num_blocks
        _multiply_block(inputs[start:stop], weights, output[start:stop], panels)


@numba.njit(nogil=True)
def _multiply_block(
    inputs: Floats, weights: FloatWeights, output: Floats, panels: tuple[int, int]
) -> None:
    """Multiplies so few rows that they stay in a core's cache while weights go by."""
    num_tokens, num_inputs = inputs.shape
    num_outputs = output.shape[1]
    num_tiles = -(-num_tokens // MAX_TILE_ROWS)
    flat_inputs, flat_output = inputs.reshape(-1), output.reshape(-1)
    edge = np.empty((num_tokens, PANEL_WIDTH), np.float32)  # for a panel wider than what is left
    for panel in range(panels[0], panels[1]):
        o = panel * PANEL_WIDTH
        width = min(num_outputs - o, PANEL_WIDTH)
        target, target_start, target_stride = flat_output, o, num_outputs
        if width < PANEL_WIDTH:
            target, target_start, target_stride = edge.reshape(-1), 0, PANEL_WIDTH
        for start in range(0, num_inputs, _MAX_DEPTH):
            depth = min(num_inputs - start, _MAX_DEPTH)
            first_weight = (panel * num_inputs + start) * PANEL_WIDTH
            for tile in range(num_tiles):
                token = num_tokens * tile // num_tiles
                place = target_start + token * target_stride
                source, source_start, source_stride = weights.bias, o, 0
                if start > 0:
                    source, source_start, source_stride = target, place, target_stride
                _multiply_tile(
                    num_tokens * (tile + 1) // num_tiles - token,
                    flat_inputs,
                    token * num_inputs + start,
                    num_inputs,
                    weights.packed,
                    first_weight,
                    PANEL_WIDTH,
                    depth,
                    place_ahead(tile, num_tiles, depth, PANEL_WIDTH),
                    source,
                    source_start,
                    source_stride,
                    target,
                    place,
                    target_stride,
                )
        if width < PANEL_WIDTH:
            for token in range(num_tokens):
                for i in range(width):
                    output[token, o + i] = edge[token, i]
