"""Matrix products with packed weights of 8 bits, as numba compiles them; see `matmul_kernel`."""

from __future__ import annotations

from typing import NamedTuple

import numba
import numpy as np
import numpy.typing as npt
import torch
from torch.nn import functional

from furiosa_llm.modeling.int8_rows import Int8Rows, padded_size
from furiosa_llm.modeling.int8_tile import (
    GROUP,
    GROUP_WIDTH,
    LARGEST_WEIGHT,
    MOST_OF_A_SUM,
    STEP,
    STEP_GROUPS,
    ZERO_POINT,
    multiply_int8_tile,
)
from furiosa_llm.modeling.layer_kernels import Floats
from furiosa_llm.modeling.matmul_tile import MAX_TILE_ROWS, PANEL_WIDTH

_MAX_CACHED_BYTES = 1 << 18  # of activations; half of what a core's second cache holds, or less


class Int8Weights(NamedTuple):
    """Of a linear layer of I inputs and O outputs, in P panels of W: about numbers * factor."""

    packed: npt.NDArray[np.int8]  # [P, I / GROUP, W, GROUP], flat, filled up with zeros
    initial: npt.NDArray[np.int32]  # [P * W], what sums begin with
    factors: Floats  # [P * W]
    bias: Floats  # [P * W]


def round_weight(weight: torch.Tensor, bias: torch.Tensor | None) -> Int8Weights:
    """Rounds a weight [O, I], with one factor for each output.

    A factor is as small as it can be without that a sum of the tile leaves its bits.
    """
    num_outputs, num_inputs = weight.shape
    num_panels = -(-num_outputs // PANEL_WIDTH)
    num_groups = padded_size(num_inputs) // GROUP
    num_padded = num_panels * PANEL_WIDTH
    factors = weight.abs().amax(dim=1) / LARGEST_WEIGHT
    if MOST_OF_A_SUM is not None:
        most = MOST_OF_A_SUM - 2  # rounding adds up to a half to each of four weights
        factors = torch.maximum(factors, _largest_sums(weight) / most)
    factors = factors.clamp(min=torch.finfo(torch.float32).tiny)
    numbers = np.zeros((num_padded, num_groups * GROUP), np.int8)
    numbers[:num_outputs, :num_inputs] = (weight / factors[:, None]).round_().numpy()
    panels = numbers.reshape(num_panels, PANEL_WIDTH, num_groups, GROUP).transpose(0, 2, 1, 3)
    return Int8Weights(
        packed=np.ascontiguousarray(panels).reshape(-1),
        initial=-ZERO_POINT * numbers.sum(axis=1, dtype=np.int32),
        factors=_padded(factors.numpy(), num_padded),
        bias=_padded(np.zeros(0, np.float32) if bias is None else bias.numpy(), num_padded),
    )


def _largest_sums(weight: torch.Tensor) -> torch.Tensor:
    """Returns for each output the largest sum of one sign that the tile holds in 16 bits, [O]."""
    num_outputs, num_inputs = weight.shape
    padded = functional.pad(weight, (0, padded_size(num_inputs) - num_inputs))
    # Of each group of inputs in a step, a sum has the first two or the last two.
    terms = padded.reshape(num_outputs, -1, STEP_GROUPS, GROUP // 2, 2)
    sums = [sign.clamp(min=0).sum(dim=(2, 4)) for sign in (terms, -terms)]
    return torch.maximum(*sums).amax(dim=(1, 2))


def _padded(values: Floats, size: int) -> Floats:
    padded = np.zeros(size, np.float32)
    padded[: len(values)] = values
    return padded


@numba.njit(nogil=True)
def multiply_int8(
    rows: Int8Rows, weights: Int8Weights, output: Floats, panels: tuple[int, int]
) -> None:
    """Writes some panels of output [T, O] = rows [T, I] @ weight [I, O] + bias [O].

    Args:
        rows: The activations.
        weights: See `round_weight`.
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
    depth, num_outputs = row_size // STEP, output.shape[1]
    step_width = STEP_GROUPS * GROUP_WIDTH
    num_tiles = -(-num_tokens // MAX_TILE_ROWS)
    ahead = -(-step_width // num_tiles)
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
                (depth * (step_width + tile * ahead), ahead),
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
