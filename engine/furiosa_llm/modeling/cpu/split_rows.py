"""Floats in three pieces of 16 bits, whose products make up those of the floats.

A float32 of 24 bits is the sum of three bfloat16 of 8 bits, each the nearest to what those before
it leave. Of the nine products of two such sums, the six largest leave out no more than 2**-24 of
the product, which is what a float32 would round away (Henry, Tang and Heinecke, Leveraging the
bfloat16 artificial intelligence datatype for higher-precision computations, 2019). What is infinite
or above 3.39e38 becomes NaN, and pieces below 1.2e-38 become 0.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numba
import numpy as np
import numpy.typing as npt
from llvmlite import ir
from numba import types
from numba.extending import intrinsic, register_jitable

from furiosa_llm.modeling.cpu.amx import TILE_BYTES, empty_rows_of, padded_bytes
from furiosa_llm.modeling.cpu.bfloat16 import BFLOAT16_BITS, UPPER_BITS
from furiosa_llm.modeling.cpu.simd import LANES, Floats, float32x16, load

NUM_PIECES = 3
SPLIT_STEP = 2 * LANES  # floats that are multiplied at once, in pairs of neighbours

_INTS = ir.VectorType(ir.IntType(32), LANES)
_INDICES = ir.VectorType(ir.IntType(32), SPLIT_STEP)
_FLOATS = ir.VectorType(ir.FloatType(), LANES)
_PAIR_BYTES = 4
_HALF_PIECE = 0x8000  # of the last bit of a piece


class SplitRows(NamedTuple):
    """Activations of T tokens, filled up with zeros to S steps; see `empty_rows_of`."""

    pieces: npt.NDArray[np.int32]  # [T, NUM_PIECES * S * LANES and perhaps more], pairs of 16 bits


@register_jitable
def row_pairs(size: int) -> int:
    """Returns how many pairs a row of so many floats has."""
    return int(padded_bytes(-(-size // SPLIT_STEP) * NUM_PIECES * TILE_BYTES) // _PAIR_BYTES)


def empty_split_rows(num_tokens: int, size: int) -> SplitRows:
    """Reserves memory for [T, I]."""
    return SplitRows(empty_rows_of(row_pairs(size), num_tokens, np.int32))


@intrinsic
def store_pairs(typing: Any, even: Any, odd: Any, target: Any, index: Any, stride: Any) -> Any:
    """Writes the pieces of LANES pairs of floats, `stride` elements apart, to an array of int32."""

    def emit(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        upper = ir.Constant(_INTS, [UPPER_BITS] * LANES)
        shift = ir.Constant(_INTS, [BFLOAT16_BITS] * LANES)

        def join(even: Any, odd: Any) -> Any:
            return builder.or_(builder.lshr(even, shift), builder.and_(odd, upper))

        _emit_pieces(context, builder, signature, arguments, join)
        return context.get_dummy_value()

    return types.void(float32x16, float32x16, target, types.intp, types.intp), emit


@intrinsic
def store_halves(typing: Any, first: Any, second: Any, target: Any, index: Any, stride: Any) -> Any:
    """Writes the pieces of twice LANES floats, which make pairs with their neighbours, likewise."""

    def emit(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        kind = ir.VectorType(ir.IntType(BFLOAT16_BITS), SPLIT_STEP)
        upper = ir.Constant(_INDICES, [2 * i + 1 for i in range(SPLIT_STEP)])

        def join(first: Any, second: Any) -> Any:
            parts = (builder.bitcast(part, kind) for part in (first, second))
            return builder.bitcast(builder.shuffle_vector(*parts, upper), _INTS)

        _emit_pieces(context, builder, signature, arguments, join)
        return context.get_dummy_value()

    return types.void(float32x16, float32x16, target, types.intp, types.intp), emit


@numba.njit(nogil=True)
def split_row(values: Floats, rows: SplitRows, row: int) -> None:
    """Writes values [I] to a row."""
    size, pieces = values.shape[0], rows.pieces[row]
    stride = -(-size // SPLIT_STEP) * LANES
    whole = size - size % SPLIT_STEP
    for i in range(0, whole, SPLIT_STEP):
        store_halves(load(values, i), load(values, i + LANES), pieces, i // 2, stride)
    if whole < size:
        last = np.zeros(SPLIT_STEP, np.float32)
        for i in range(size - whole):
            last[i] = values[whole + i]
        store_halves(load(last, 0), load(last, LANES), pieces, whole // 2, stride)


def _emit_pieces(
    context: Any, builder: Any, signature: Any, arguments: Any, join: Callable[[Any, Any], Any]
) -> None:
    *rest, array, index, stride = arguments
    data = context.make_array(signature.args[2])(context, builder, array).data
    upper, half = (ir.Constant(_INTS, [bits] * LANES) for bits in (UPPER_BITS, _HALF_PIECE))
    for piece in range(NUM_PIECES):
        bits = [builder.add(builder.bitcast(floats, _INTS), half) for floats in rest]
        start = builder.add(index, builder.mul(stride, stride.type(piece)))
        place = builder.bitcast(builder.gep(data, [start]), _INTS.as_pointer())
        builder.store(join(*bits), place, align=_PAIR_BYTES)
        tops = [builder.bitcast(builder.and_(part, upper), _FLOATS) for part in bits]
        rest = [builder.fsub(floats, top) for floats, top in zip(rest, tops, strict=True)]
