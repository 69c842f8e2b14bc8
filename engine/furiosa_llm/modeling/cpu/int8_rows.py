"""Activations rounded to 8 bits, with a scale for each token, as numba compiles it.

Rounded as they come (dynamic quantisation, as in LLM.int8(), Dettmers et al. 2022).
"""

from __future__ import annotations

from typing import NamedTuple

import numba
import numpy as np
import numpy.typing as npt
from numba.extending import register_jitable

from furiosa_llm.modeling.cpu.amx import HAS_AMX, empty_rows_of, padded_bytes
from furiosa_llm.modeling.cpu.int8_tile import INPUT_MULTIPLE, LARGEST_INPUT, ZERO_POINT
from furiosa_llm.modeling.cpu.simd import Floats

_ZERO = np.float32(0.0)
_ALL_BUT_SIGN = np.int32(0x7FFFFFFF)
_LARGEST = np.float32(LARGEST_INPUT)
_SHIFT = np.float32(ZERO_POINT + 0.5)  # truncation rounds to the nearest, once nothing is negative


class Int8Rows(NamedTuple):
    """Activations of T tokens: about (numbers - ZERO_POINT) * scale."""

    # [T, I], filled up with anything to a multiple of INPUT_MULTIPLE or more; see `empty_rows_of`.
    numbers: npt.NDArray[np.uint8]
    scales: Floats  # [T]


@register_jitable
def padded_size(size: int) -> int:
    """Returns how many inputs the weights of so many are filled up to."""
    return -(-size // INPUT_MULTIPLE) * INPUT_MULTIPLE


@register_jitable
def row_bytes(size: int) -> int:
    """Returns how many numbers a row of so many inputs has."""
    return int(padded_bytes(size) if HAS_AMX else padded_size(size))


def empty_rows(num_tokens: int, size: int) -> Int8Rows:
    """Reserves memory for [T, I]."""
    numbers = empty_rows_of(row_bytes(size), num_tokens, np.uint8)
    return Int8Rows(numbers, np.empty(num_tokens, np.float32))


@numba.njit(nogil=True, error_model="numpy")
def round_row(values: Floats, rows: Int8Rows, row: int) -> None:
    """Writes values [I] to a row, with a scale of its own; it is not finite if a value is not."""
    bits, largest_bits = values.view(np.int32), np.int32(0)
    for i in range(values.shape[0]):
        # Without the sign they are in the order of the numbers, infinity and NaN last.
        largest_bits = max(largest_bits, np.int32(bits[i] & _ALL_BUT_SIGN))
    largest = np.int32(largest_bits).view(np.float32)
    factor = _LARGEST / largest if largest > _ZERO else _ZERO
    numbers = rows.numbers[row]
    for i in range(values.shape[0]):
        numbers[i] = np.uint8(np.int32(values[i] * factor + _SHIFT))
    rows.scales[row] = largest / _LARGEST
