"""Matrix products in either precision, for kernels that do not care which.

`put_row`, `take_rows` and `multiply_panels` exist for floats, for floats in pieces and for 8-bit
numbers; numba picks by the types of what they are given. Pieces stand for floats where there are
tiles to multiply them.
"""

from __future__ import annotations

from typing import Any, TypeAlias

import numba
import numpy as np
from numba.extending import overload

from furiosa_llm.modeling.cpu.amx import HAS_AMX
from furiosa_llm.modeling.cpu.core_threads import CoreThreads
from furiosa_llm.modeling.cpu.int8_amx import multiply_int8_tiles
from furiosa_llm.modeling.cpu.int8_matmul import Int8Weights, multiply_int8
from furiosa_llm.modeling.cpu.int8_rows import Int8Rows, empty_rows, round_row, row_bytes
from furiosa_llm.modeling.cpu.matmul_kernel import FloatWeights, multiply_floats
from furiosa_llm.modeling.cpu.matmul_tile import PANEL_WIDTH
from furiosa_llm.modeling.cpu.simd import Floats
from furiosa_llm.modeling.cpu.split_matmul import multiply_split
from furiosa_llm.modeling.cpu.split_rows import SplitRows, empty_split_rows, row_pairs, split_row

Weights: TypeAlias = FloatWeights | Int8Weights
Rows: TypeAlias = Floats | SplitRows | Int8Rows  # [T, I]

_ROWS_WORTH_A_THREAD = 32
_multiply_int8 = multiply_int8_tiles if HAS_AMX else multiply_int8


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
    if not isinstance(weights, FloatWeights):
        return empty_rows(num_tokens, size)
    if HAS_AMX:
        return empty_split_rows(num_tokens, size)
    return np.empty((num_tokens, size), np.float32)


def rows_of(inputs: Floats, weights: Weights, threads: CoreThreads) -> Rows:
    """Returns activations [T, I] as the product with these weights takes them."""
    if isinstance(weights, FloatWeights) and not HAS_AMX:
        return inputs
    rows = rows_for(weights, *inputs.shape)
    threads.share(
        lambda share, num_shares: put_rows(inputs, rows, share, num_shares),
        num_units=-(-len(inputs) // _ROWS_WORTH_A_THREAD),
    )
    return rows


def put_row(values: Floats, rows: Rows, row: int) -> None:
    """Writes activations [I] to a row, rounded if the precision asks for it."""


def take_rows(memory: Rows, num_tokens: int, size: int) -> Rows:
    """Returns rows [T, I] that lie in memory from `rows_for`."""
    raise NotImplementedError  # outside of kernels


def rows_from(memory: Rows, start: int) -> Rows:
    """Returns memory from `rows_for` without its first rows."""
    raise NotImplementedError  # outside of kernels


def multiply_panels(rows: Rows, weights: Weights, output: Floats, panels: tuple[int, int]) -> None:
    """Writes some panels of output [T, O] = rows [T, I] @ weight [I, O] + bias [O]."""


@overload(put_row, strict=False)
def _put_row(values: Any, rows: Any, row: Any) -> Any:
    if _is(rows, Int8Rows):
        return lambda values, rows, row: round_row(values, rows, row)
    if _is(rows, SplitRows):
        return lambda values, rows, row: split_row(values, rows, row)

    def put(values: Floats, rows: Floats, row: int) -> None:
        for i in range(values.shape[0]):  # a slice would take seconds to compile
            rows[row, i] = values[i]

    return put


@overload(take_rows, strict=False)
def _take_rows(memory: Any, num_tokens: Any, size: Any) -> Any:
    if _is(memory, Int8Rows):
        return lambda memory, num_tokens, size: Int8Rows(
            _cut(memory.numbers, num_tokens, row_bytes(size)), memory.scales[:num_tokens]
        )
    if _is(memory, SplitRows):
        return lambda memory, num_tokens, size: SplitRows(
            _cut(memory.pieces, num_tokens, row_pairs(size))
        )
    return lambda memory, num_tokens, size: _cut(memory, num_tokens, size)


@overload(rows_from, strict=False)
def _rows_from(memory: Any, start: Any) -> Any:
    if _is(memory, Int8Rows):
        return lambda memory, start: Int8Rows(memory.numbers[start:], memory.scales[start:])
    if _is(memory, SplitRows):
        return lambda memory, start: SplitRows(memory.pieces[start:])
    return lambda memory, start: memory[start:]


@overload(multiply_panels, strict=False, inline="always")
def _multiply_panels(rows: Any, weights: Any, output: Any, panels: Any) -> Any:
    if _is(rows, Int8Rows):
        return lambda rows, weights, output, panels: _multiply_int8(rows, weights, output, panels)
    if _is(rows, SplitRows):
        return lambda rows, weights, output, panels: multiply_split(rows, weights, output, panels)
    return lambda rows, weights, output, panels: multiply_floats(rows, weights, output, panels)


def _is(rows: Any, kind: type) -> bool:
    return getattr(rows, "instance_class", None) is kind


@numba.njit(nogil=True, inline="always")
def _cut(memory: Any, num_tokens: int, width: int) -> Any:
    return memory.reshape(-1)[: num_tokens * width].reshape(num_tokens, width)


@numba.njit(nogil=True)
def put_rows(inputs: Floats, rows: Rows, share: int, num_shares: int) -> None:
    """Writes a share of the rows of [T, I]."""
    num_rows = inputs.shape[0]
    for row in range(num_rows * share // num_shares, num_rows * (share + 1) // num_shares):
        put_row(inputs[row], rows, row)


@numba.njit(nogil=True, inline="always")
def multiply(rows: Rows, weights: Weights, output: Floats, share: int, num_shares: int) -> None:
    """Writes a share of output [T, O] = rows [T, I] @ weight [I, O] + bias [O]."""
    panels = weights.bias.shape[0] // PANEL_WIDTH
    start, stop = panels * share // num_shares, panels * (share + 1) // num_shares
    multiply_panels(rows, weights, output, (start, stop))


KERNELS = (put_rows, multiply)
