"""Weights rounded to 8 bits, as numba compiles it."""

from __future__ import annotations

import numba
import numpy as np
import numpy.typing as npt

from furiosa_llm.modeling.cpu import huge_pages
from furiosa_llm.modeling.cpu.int8_matmul import Int8Weights
from furiosa_llm.modeling.cpu.int8_rows import padded_size
from furiosa_llm.modeling.cpu.int8_tile import (
    GROUP,
    GROUP_WIDTH,
    LARGEST_WEIGHT,
    MOST_OF_A_SUM,
    STEP,
    ZERO_POINT,
)
from furiosa_llm.modeling.cpu.matmul_kernel import FloatWeights
from furiosa_llm.modeling.cpu.matmul_tile import PANEL_WIDTH
from furiosa_llm.modeling.cpu.simd import Floats

_ZERO = np.float32(0.0)
_LARGEST = np.float32(LARGEST_WEIGHT)
_SUM_HALVES = GROUP // 2  # of a group, which are in different sums
# Rounding adds up to a half to each of four weights.
_MOST = np.float32(np.inf if MOST_OF_A_SUM is None else MOST_OF_A_SUM - 2)
_LEAST_FACTOR = np.finfo(np.float32).tiny


def round_weights(weights: FloatWeights) -> Int8Weights:
    """Rounds weights of I inputs and O outputs, with one factor for each output.

    A factor is as small as it can be without that a sum of the tile leaves its bits.
    """
    num_outputs = weights.bias.size
    num_inputs = weights.packed.size // num_outputs
    numbers = huge_pages.zeros([num_outputs * padded_size(num_inputs)], np.int8)
    initial, factors = np.zeros(num_outputs, np.int32), np.empty(num_outputs, np.float32)
    round_panels(weights.packed, num_inputs, numbers, initial, factors)
    return Int8Weights(packed=numbers, initial=initial, factors=factors, bias=weights.bias)


@numba.njit(nogil=True, error_model="numpy")
def round_panels(
    weights: Floats,
    num_inputs: int,
    numbers: npt.NDArray[np.int8],
    initial: npt.NDArray[np.int32],
    factors: Floats,
) -> None:
    """Rounds P panels of W outputs.

    Args:
        weights: [P, I, W], flat.
        num_inputs: I.
        numbers: [P, I / GROUP, W, GROUP], flat; zeros before.
        initial: [P * W]; likewise.
        factors: [P * W], written.
    """
    span = numbers.shape[0] // factors.shape[0] * PANEL_WIDTH
    for panel in range(factors.shape[0] // PANEL_WIDTH):
        lanes = slice(panel * PANEL_WIDTH, (panel + 1) * PANEL_WIDTH)
        start, stop = panel * num_inputs, (panel + 1) * num_inputs
        rows = weights[start * PANEL_WIDTH : stop * PANEL_WIDTH].reshape(num_inputs, PANEL_WIDTH)
        factor, total = factors[lanes], initial[lanes]
        _find_factors(rows, factor)
        for i in range(num_inputs):
            place = panel * span + i // GROUP * GROUP_WIDTH + i % GROUP
            for lane in range(PANEL_WIDTH):
                number = np.int32(np.rint(rows[i, lane] / factor[lane]))
                numbers[place + lane * GROUP] = number
                total[lane] -= ZERO_POINT * number


KERNELS = (round_panels,)


@numba.njit(nogil=True, error_model="numpy")
def _find_factors(rows: Floats, factors: Floats) -> None:
    """Writes the factors of one panel [I, W]; no number where a weight is not finite."""
    largest, zeros = np.zeros(PANEL_WIDTH, np.float32), np.zeros(PANEL_WIDTH, np.float32)
    largest_sum = np.zeros(PANEL_WIDTH, np.float32)
    sums = np.zeros((_SUM_HALVES, 2, PANEL_WIDTH), np.float32)  # of what is above 0, and below
    for i in range(rows.shape[0]):
        positive, negative = sums[i % GROUP // 2]
        for lane in range(PANEL_WIDTH):
            weight = rows[i, lane]
            largest[lane] = max(largest[lane], abs(weight))
            zeros[lane] += weight * _ZERO  # NaN from there on where that is not 0
            positive[lane] += max(weight, _ZERO)
            negative[lane] -= min(weight, _ZERO)
        if i % STEP == STEP - 1 or i == rows.shape[0] - 1:
            for half in range(_SUM_HALVES):
                for sign in range(2):
                    for lane in range(PANEL_WIDTH):
                        largest_sum[lane] = max(largest_sum[lane], sums[half, sign, lane])
                        sums[half, sign, lane] = _ZERO
    for lane in range(PANEL_WIDTH):
        factor = largest[lane] / _LARGEST
        if largest_sum[lane] / _MOST > factor:
            factor = largest_sum[lane] / _MOST
        factors[lane] = max(factor, _LEAST_FACTOR) + zeros[lane]
