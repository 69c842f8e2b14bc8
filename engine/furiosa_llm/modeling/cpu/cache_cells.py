"""What the KV cache consists of: floats, or pairs of numbers of 16 bits (bfloat16).

A pair, one int32, holds the elements 2i and 2i + 1 of a token's key, or the same element of the
values of two tokens that follow each other: what a product sums up lies side by side, so that one
instruction multiplies and adds both (AVX512_BF16). Where there is none, pairs are taken apart.

Functions for kernels alone; numba picks by the type of a cell.
"""

from __future__ import annotations

from typing import Any, TypeAlias

import numba
import numpy as np
import numpy.typing as npt
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic, overload

from furiosa_llm.modeling.cpu import aligned, processor
from furiosa_llm.modeling.cpu.bfloat16 import BFLOAT16_BITS, BFloat16
from furiosa_llm.modeling.cpu.simd import LANES, Floats, load

PAIR_ROOM = 2 * LANES
HAS_PAIR_PRODUCTS = processor.has("avx512bf16")

Pairs = npt.NDArray[np.int32]
Cells: TypeAlias = Floats | Pairs

_LOWER_BITS = np.int32(0xFFFF)
_INT = ir.IntType(32)
_INTS = ir.VectorType(_INT, LANES)
_HALF, _NAN = 0x7FFF, 0x7FC0  # of a bfloat16
_ALL_BUT_SIGN, _INFINITY = 0x7FFFFFFF, 0x7F800000  # of a float32


def numbers_per_cell(cells: Cells) -> int:
    """Returns how many numbers an element of the array holds."""
    return 2 if cells.dtype == np.int32 else 1


def key_cell(lines: Cells, keys: Floats, token: int, column: int) -> Any:
    """Returns what a cell of `lines` holds of keys [T, *]: a token's numbers from a column on."""


def put_value(
    lines: Cells, start: int, offset: int, values: Floats, token: int, columns: tuple[int, int]
) -> None:
    """Writes a token's value, which is some columns of [T, *], to its cells.

    Tokens of a block are written in their order: the first of a pair leaves 0 for the second.

    Args:
        lines: Of a block and head.
        start: The first cell, the same for both tokens of a pair.
        offset: The place of the token in its block.
        values: The numbers.
        token: The row of them.
        columns: The first one, and the one after the last.
    """


def inputs_for(cells: Cells, floats: Floats) -> Cells:
    """Returns memory for as many numbers [N, *] as products with cells take them.

    It is that of the floats themselves, or for pairs.
    """
    if numbers_per_cell(cells) == 1 or not HAS_PAIR_PRODUCTS:
        return floats
    return aligned.empty((floats.shape[0], floats.shape[1] // 2), np.int32)


def put_inputs(floats: Floats, inputs: Cells, start: int, size: int) -> None:
    """Brings numbers into memory from `inputs_for`, to the same place among them.

    Args:
        floats: The numbers, with room for `PAIR_ROOM` more.
        inputs: What takes them.
        start: The first number, an even one.
        size: How many; what follows in `inputs` may be written, too.
    """


@overload(numbers_per_cell, inline="always", strict=False)
def _numbers_per_cell(cells: Any) -> Any:
    if cells.dtype == types.int32:
        return lambda cells: 2
    return lambda cells: 1


@overload(key_cell, inline="always", strict=False)
def _key_cell(lines: Any, keys: Any, token: Any, column: Any) -> Any:
    if lines.dtype == types.int32:
        return lambda lines, keys, token, column: _pair(
            _rounded(keys[token, column]), _rounded(keys[token, column + 1])
        )
    return lambda lines, keys, token, column: keys[token, column]


@overload(put_value, inline="always", strict=False)
def _put_value(lines: Any, start: Any, offset: Any, values: Any, token: Any, columns: Any) -> Any:
    if lines.dtype == types.int32:

        def put_halves(
            lines: Pairs,
            start: int,
            offset: int,
            values: Floats,
            token: int,
            columns: tuple[int, int],
        ) -> None:
            first, stop = columns
            if offset % 2 == 0:
                for column in range(first, stop):
                    lines[start + column - first] = _rounded(values[token, column])
            else:
                for column in range(first, stop):
                    cell = start + column - first
                    first_half = lines[cell] & _LOWER_BITS
                    lines[cell] = _pair(first_half, _rounded(values[token, column]))

        return put_halves

    def put(
        lines: Floats, start: int, offset: int, values: Floats, token: int, columns: tuple[int, int]
    ) -> None:
        first, stop = columns
        for column in range(first, stop):
            lines[start + column - first] = values[token, column]

    return put


@overload(put_inputs, strict=False)
def _put_inputs(floats: Any, inputs: Any, start: Any, size: Any) -> Any:
    if inputs.dtype == types.float32:
        return lambda floats, inputs, start, size: None

    def put(floats: Floats, inputs: Pairs, start: int, size: int) -> None:
        for i in range(start, start + size, PAIR_ROOM):
            store_pairs(load(floats, i), load(floats, i + LANES), inputs, i // 2)

    return put


@numba.njit(nogil=True, inline="always")
def padded_value_size(cells: Cells, key_size: int, block_size: int) -> int:
    """Returns how far apart two tokens' values lie in blocks, or in the lines of one's head."""
    return int(cells.shape[-1] * numbers_per_cell(cells) // block_size - key_size)


@numba.njit(nogil=True, inline="always")
def pair_start(slot_mapping: npt.NDArray[np.int64], token: int) -> int:
    """Returns the first token from one on whose value is not in the pair of the one before it.

    Threads that store tokens up to there, and from there on, never write the same pair.
    """
    if 0 < token < slot_mapping.shape[0] and slot_mapping[token] % 2 == 1:
        return token + int(slot_mapping[token] == slot_mapping[token - 1] + 1)
    return token


@intrinsic
def _rounded(typing: Any, number: Any) -> Any:
    """Returns the bits of the nearest bfloat16, as an int32; of two, that which is even."""

    def emit(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        bits = builder.bitcast(arguments[0], _INT)
        last = builder.and_(builder.lshr(bits, _INT(BFLOAT16_BITS)), _INT(1))
        nearest = builder.add(builder.add(bits, _INT(_HALF)), last)
        # Told by its bits: kernels are compiled as if there were none.
        size = builder.and_(bits, _INT(_ALL_BUT_SIGN))
        is_nan = builder.icmp_unsigned(">", size, _INT(_INFINITY))
        return builder.select(is_nan, _INT(_NAN), builder.lshr(nearest, _INT(BFLOAT16_BITS)))

    return types.int32(types.float32), emit


@intrinsic
def _pair(typing: Any, first: Any, second: Any) -> Any:
    """Returns the pair of two numbers that are given as their bits."""

    def emit(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        first, second = arguments
        return builder.or_(first, builder.shl(second, _INT(BFLOAT16_BITS)))

    return types.int32(types.int32, types.int32), emit


@intrinsic
def store_pairs(typing: Any, first: Any, second: Any, target: Any, index: Any) -> Any:
    """Writes twice LANES floats, rounded, as LANES pairs of neighbours (AVX512_BF16)."""

    def emit(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        first, second, array, index = arguments
        kind = ir.VectorType(BFloat16(), 2 * LANES)
        operation = cgutils.get_or_insert_function(
            builder.module,
            ir.FunctionType(kind, [first.type] * 2),
            "llvm.x86.avx512bf16.cvtne2ps2bf16.512",
        )
        pairs = builder.bitcast(builder.call(operation, [second, first]), _INTS)
        data = context.make_array(signature.args[2])(context, builder, array).data
        place = builder.bitcast(builder.gep(data, [index]), _INTS.as_pointer())
        builder.store(pairs, place, align=4)
        return context.get_dummy_value()

    return types.void(first, second, target, types.intp), emit
