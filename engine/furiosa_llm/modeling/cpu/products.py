"""Matrix products in either precision, for kernels that do not care which.

`put_row`, `take_rows` and `multiply_panels` exist for floats and for 8-bit numbers; numba picks by
the types of what they are given.
"""

from __future__ import annotations

from typing import Any, TypeAlias

import numba
import numpy as np
from numba import types
from numba.extending import overload

from furiosa_llm.modeling.cpu.int8_matmul import Int8Weights, multiply_int8
from furiosa_llm.modeling.cpu.int8_rows import Int8Rows, empty_rows, padded_size, round_row
from furiosa_llm.modeling.cpu.layer_kernels import Floats
from furiosa_llm.modeling.cpu.matmul_kernel import FloatWeights, multiply_floats
from furiosa_llm.modeling.cpu.matmul_tile import PANEL_WIDTH

Weights: TypeAlias = FloatWeights | Int8Weights
Rows: TypeAlias = Floats | Int8Rows  # [T, I]

_round_size = numba.njit(padded_size)


def num_panels(weights: Weights) -> int:
    """Returns how many pieces a product with these weights can be shared out in."""
    return int(weights.bias.shape[0]) // PANEL_WIDTH


def rows_for(weights: Weights, num_tokens: int, size: int) -> Rows:
    """Reserves memory that `take_rows` cuts rows of activations from.

    Args:
        weights: Of any layer of the same precision.
        num_tokens: How many rows at most.
        size: Elements of a row at most.
    """
    if isinstance(weights, FloatWeights):
        return np.empty(num_tokens * size, np.float32)
    return empty_rows(num_tokens, size)


def put_row(values: Floats, rows: Rows, row: int) -> None:
    """Writes activations [I] to a row, rounded if the precision asks for it."""


def take_rows(memory: Rows, num_tokens: int, size: int) -> Rows:
    """Returns rows [T, I] that lie in memory from `rows_for`."""
    raise NotImplementedError  # outside of kernels


def multiply_panels(rows: Rows, weights: Weights, output: Floats, panels: tuple[int, int]) -> None:
    """Writes some panels of output [T, O] = rows [T, I] @ weight [I, O] + bias [O]."""


@overload(put_row, strict=False)
def _put_row(values: Any, rows: Any, row: Any) -> Any:
    if _is_int8(rows):
        return lambda values, rows, row: round_row(values, rows, row)

    def put(values: Floats, rows: Floats, row: int) -> None:
        for i in range(values.shape[0]):  # a slice would take seconds to compile
            rows[row, i] = values[i]

    return put


@overload(take_rows, strict=False)
def _take_rows(memory: Any, num_tokens: Any, size: Any) -> Any:
    if not _is_int8(memory):
        return lambda memory, num_tokens, size: memory[: num_tokens * size].reshape(
            num_tokens, size
        )

    def take(memory: Int8Rows, num_tokens: int, size: int) -> Int8Rows:
        width = _round_size(size)
        numbers = memory.numbers.reshape(-1)[: num_tokens * width].reshape(num_tokens, width)
        return Int8Rows(numbers, memory.scales[:num_tokens])

    return take


@overload(multiply_panels, strict=False)
def _multiply_panels(rows: Any, weights: Any, output: Any, panels: Any) -> Any:
    if _is_int8(rows):
        return lambda rows, weights, output, panels: multiply_int8(rows, weights, output, panels)
    return lambda rows, weights, output, panels: multiply_floats(rows, weights, output, panels)


def _is_int8(rows: Any) -> bool:
    return isinstance(rows, types.NamedTuple) and rows.instance_class is Int8Rows


@numba.njit(nogil=True)
def put_rows(inputs: Floats, rows: Rows) -> None:
    """Writes all rows of [T, I]."""
    for row in range(inputs.shape[0]):
        put_row(inputs[row], rows, row)


@numba.njit(nogil=True)
def multiply(rows: Rows, weights: Weights, output: Floats, share: int, num_shares: int) -> None:
    """Writes a share of output [T, O] = rows [T, I] @ weight [I, O] + bias [O]."""
    panels = weights.bias.shape[0] // PANEL_WIDTH
    start, stop = panels * share // num_shares, panels * (share + 1) // num_shares
    multiply_panels(rows, weights, output, (start, stop))


KERNELS = (put_rows, multiply)
