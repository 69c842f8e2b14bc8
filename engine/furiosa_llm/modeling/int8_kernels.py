"""Rounding of activations to 8 bits, as numba compiles it."""

from __future__ import annotations

import numba
import numpy as np
import numpy.typing as npt

from furiosa_llm.modeling.layer_kernels import Floats
from furiosa_llm.modeling.simd import LANES, exponential, load, store

Bytes = npt.NDArray[np.uint8]

_ZERO = np.float32(0.0)
_ONE = np.float32(1.0)
_HALF = np.float32(0.5)


@numba.njit(nogil=True, fastmath=True, error_model="numpy")
def quantize(inputs: Floats, numbers: Bytes, scales: Floats, largest_number: int) -> None:
    """Rounds each row of [T, I] with a scale of its own.

    Args:
        inputs: [T, I].
        numbers: [T, I], written: the nearest whole multiples of the scale, plus a zero point of
            `largest_number` + 1.
        scales: [T], written.
        largest_number: Of the multiples.
    """
    for row in range(inputs.shape[0]):
        scales[row] = _round_row(inputs[row], numbers[row], largest_number)


@numba.njit(nogil=True, fastmath=True, error_model="numpy")
def gate_and_quantize(
    gate: Floats, up: Floats, numbers: Bytes, scales: Floats, largest_number: int
) -> None:
    """Rounds silu(gate) * up, of [T, I] each, likewise. `gate` is overwritten."""
    size = gate.shape[1]
    padded = -(-size // LANES) * LANES
    powers = np.zeros(padded, np.float32)
    for row in range(gate.shape[0]):
        for i in range(size):
            powers[i] = -gate[row, i]
        for i in range(0, padded, LANES):
            store(powers, i, exponential(load(powers, i)))
        for i in range(size):
            gate[row, i] = gate[row, i] * up[row, i] / (_ONE + powers[i])
        scales[row] = _round_row(gate[row], numbers[row], largest_number)


KERNELS = (quantize, gate_and_quantize)


@numba.njit(nogil=True, fastmath=True, error_model="numpy", inline="always")
def _round_row(values: Floats, numbers: Bytes, largest_number: int) -> np.float32:
    largest = _ZERO
    for i in range(values.shape[0]):
        largest = max(largest, abs(values[i]))
    scale = largest / np.float32(largest_number)
    factor = _ONE / scale if scale > _ZERO else _ZERO
    # Truncation rounds to the nearest, once nothing is negative.
    shift = np.float32(largest_number + 1) + _HALF
    for i in range(values.shape[0]):
        numbers[i] = np.uint8(np.int32(values[i] * factor + shift))
    return scale
