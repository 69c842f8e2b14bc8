"""Tiles: registers of 16 rows of 64 bytes, which one instruction multiplies (Intel's AMX).

A product of two tiles takes 16 cycles, in which vectors get through a sixteenth of it. Here, four
tiles hold the sums of 32 rows of inputs and a panel of 32 outputs, in the order [row half, panel
half], two hold the inputs of either row half, and two the weights of either panel half.
"""

from __future__ import annotations

import ctypes
import platform
import sys
from typing import Any

import numba
import numpy as np
import numpy.typing as npt
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic, register_jitable

from furiosa_llm.modeling.cpu import aligned, processor

TILE_ROWS = 16
TILE_BYTES = 64  # of a row
MAX_ROWS = 2 * TILE_ROWS

_MAX_CACHED_BYTES = 1 << 20  # of rows; half of what a core's second cache holds, or less

# Linux's, to be asked for before the first use of a tile.
_ARCH_PRCTL, _REQUEST_PERMISSION, _TILE_DATA = 158, 0x1023, 18

_NUM_TILES = 8
_FIRST_INPUTS, _FIRST_WEIGHTS = 4, 6  # after the sums
# What tiles are like: a version, then the bytes of each one's rows, and how many rows.
_CONFIGURATION = bytes(
    [1, *[0] * 15, *[TILE_BYTES, 0] * _NUM_TILES, *[0] * 16, *[TILE_ROWS] * _NUM_TILES, *[0] * 8]
)
_INT8, _INT64 = ir.IntType(8), ir.IntType(64)
_POINTER = _INT8.as_pointer()


def _is_allowed() -> bool:
    """Asks the system whether this process may use tiles; its threads and children may then too."""
    if sys.platform != "linux" or platform.machine() != "x86_64":
        return False
    answer = ctypes.CDLL(None).syscall(_ARCH_PRCTL, _REQUEST_PERMISSION, _TILE_DATA)
    return bool(answer == 0)


HAS_AMX = (
    processor.has("amx-tile", "amx-int8", "amx-bf16", "avx512f", "avx512vnni") and _is_allowed()
)


@register_jitable
def padded_bytes(num_bytes: int) -> int:
    """Returns how far apart to lay rows of so many bytes.

    They are an odd number of a cache's lines: those of a tile then have places of their own in it.
    """
    lines = -(-num_bytes // TILE_BYTES)
    return (lines + 1 - lines % 2) * TILE_BYTES


def empty_rows_of(row_size: int, num_tokens: int, dtype: npt.DTypeLike) -> npt.NDArray[Any]:
    """Reserves memory for rows that tiles are loaded from, [T, `row_size`].

    The first one begins a line of a cache: a tile whose rows lie across lines is read four times as
    slowly. There is memory behind them for a multiple of `MAX_ROWS` rows, as tiles are read whole.
    """
    num_rows = -(-num_tokens // MAX_ROWS) * MAX_ROWS
    return aligned.empty((num_rows, row_size), dtype)[:num_tokens]


@register_jitable
def count_row_blocks(num_tokens: int, row_bytes: int) -> int:
    """Returns in how many blocks to multiply rows, so that one stays in a core's second cache."""
    num_tiles = -(-num_tokens // MAX_ROWS)
    return -(-num_tiles // max(_MAX_CACHED_BYTES // row_bytes // MAX_ROWS, 1))


@register_jitable
def row_block(num_tokens: int, num_blocks: int, block: int) -> tuple[int, int]:
    """Returns the first row of a block, and the one after its last: whole tiles but in the last."""
    num_tiles = -(-num_tokens // MAX_ROWS)
    start = num_tiles * block // num_blocks * MAX_ROWS
    return start, min(num_tiles * (block + 1) // num_blocks * MAX_ROWS, num_tokens)


@numba.njit(nogil=True)
def aligned_floats(size: int) -> npt.NDArray[np.float32]:
    """Reserves memory for floats that begin a line of a cache, in kernels."""
    memory = np.empty(size + TILE_ROWS, np.float32)
    start = -memory.ctypes.data // memory.itemsize % TILE_ROWS
    return memory[start : start + size]


# Each of the following is a function for kernels alone, and does nothing about memory that is
# not there: tiles are read and written whole. Where a number of rows is asked for, it is up to 32,
# and one of up to 16 leaves the second row half alone.


@intrinsic
def start_tiles(typing: Any) -> Any:
    """Makes a thread's tiles ready, all of them of full size."""

    def emit(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        kind = ir.ArrayType(_INT8, len(_CONFIGURATION))
        content = ir.Constant(kind, bytearray(_CONFIGURATION))
        place = cgutils.global_constant(builder, "tiles", content)
        _call(builder, "ldtilecfg", builder.bitcast(place, _POINTER))
        return context.get_dummy_value()

    return types.void(), emit


@intrinsic
def stop_tiles(typing: Any) -> Any:
    """Gives a thread's tiles back: what they hold would have to be kept when threads change."""

    def emit(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        _call(builder, "tilerelease")
        return context.get_dummy_value()

    return types.void(), emit


@intrinsic
def load_sums(typing: Any, num_rows: Any, array: Any, index: Any, stride: Any) -> Any:
    """Reads [32, 32] numbers of 32 bits that begin at an index; a stride of 0 repeats a row."""
    return _sums_moved("tileloadd64", array)


@intrinsic
def store_sums(typing: Any, num_rows: Any, array: Any, index: Any, stride: Any) -> Any:
    """Writes them."""
    return _sums_moved("tilestored64", array)


@intrinsic
def load_inputs(typing: Any, num_rows: Any, array: Any, index: Any, stride: Any) -> Any:
    """Reads [32, 64 bytes] that begin at an index; the stride is in elements."""

    def emit(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        num_rows, *_ = arguments
        matrix = _matrix(context, builder, signature, arguments)

        def load(half: int) -> None:
            _move(builder, "tileloadd64", _FIRST_INPUTS + half, matrix, half, 0)

        _for_halves(builder, num_rows, load)
        return context.get_dummy_value()

    return types.void(types.intp, array, types.intp, types.intp), emit


@intrinsic
def load_weights(typing: Any, array: Any, index: Any) -> Any:
    """Reads [16, 2, 64 bytes]."""

    def emit(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        array, index = arguments
        pointer = _place(context, builder, signature.args[0], array, index)
        for half in range(2):
            matrix = pointer, _INT64(2 * TILE_BYTES)
            _move(builder, "tileloadd64", _FIRST_WEIGHTS + half, matrix, 0, half)
        return context.get_dummy_value()

    return types.void(array, types.intp), emit


@intrinsic
def multiply_bfloat16(typing: Any, num_rows: Any) -> Any:
    """Adds inputs [32, 16 pairs] times weights [16 pairs, 32], of bfloat16, to sums of float32."""
    return _tiles_multiplied("tdpbf16ps")


@intrinsic
def multiply_bytes(typing: Any, num_rows: Any) -> Any:
    """Adds inputs [32, 16 * 4], uint8, times weights [16 * 4, 32], int8, to sums of int32."""
    return _tiles_multiplied("tdpbusd")


def _sums_moved(name: str, array: Any) -> Any:
    def emit(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        num_rows, *_ = arguments
        matrix = _matrix(context, builder, signature, arguments)

        def move(row_half: int) -> None:
            for panel_half in range(2):
                _move(builder, name, 2 * row_half + panel_half, matrix, row_half, panel_half)

        _for_halves(builder, num_rows, move)
        return context.get_dummy_value()

    return types.void(types.intp, array, types.intp, types.intp), emit


def _tiles_multiplied(name: str) -> Any:
    def emit(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        def multiply(row_half: int) -> None:
            for panel_half in range(2):
                tiles = 2 * row_half + panel_half, _FIRST_INPUTS + row_half
                _call(builder, name, *map(_INT8, (*tiles, _FIRST_WEIGHTS + panel_half)))

        _for_halves(builder, arguments[0], multiply)
        return context.get_dummy_value()

    return types.void(types.intp), emit


def _for_halves(builder: Any, num_rows: Any, emit: Any) -> None:
    """Emits `emit(0)`, and `emit(1)` for where there are more than 16 rows."""
    emit(0)
    with builder.if_then(builder.icmp_signed(">", num_rows, _INT64(TILE_ROWS)), likely=True):
        emit(1)


def _matrix(context: Any, builder: Any, signature: Any, arguments: Any) -> tuple[Any, Any]:
    """Returns a pointer and the bytes from row to row, of arguments as for `load_sums`."""
    _, array, index, stride = arguments
    array_type = signature.args[1]
    element_bytes = context.get_abi_sizeof(context.get_data_type(array_type.dtype))
    pointer = _place(context, builder, array_type, array, index)
    return pointer, builder.mul(stride, _INT64(element_bytes))


def _place(context: Any, builder: Any, array_type: Any, array: Any, index: Any) -> Any:
    data = context.make_array(array_type)(context, builder, array).data
    return builder.bitcast(builder.gep(data, [index]), _POINTER)


def _move(
    builder: Any, name: str, tile: int, matrix: tuple[Any, Any], row_half: int, panel_half: int
) -> None:
    """Reads or writes the part of a matrix that a tile holds."""
    pointer, stride = matrix
    offset = builder.mul(stride, _INT64(row_half * TILE_ROWS))
    place = builder.gep(pointer, [builder.add(offset, _INT64(panel_half * TILE_BYTES))])
    _call(builder, name, _INT8(tile), place, stride)


def _call(builder: Any, name: str, *arguments: Any) -> None:
    function_type = ir.FunctionType(ir.VoidType(), [argument.type for argument in arguments])
    operation = cgutils.get_or_insert_function(builder.module, function_type, f"llvm.x86.{name}")
    builder.call(operation, arguments)
