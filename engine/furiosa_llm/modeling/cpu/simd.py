"""Vectors of sixteen float32 for kernels that numba compiles.

A compiler seldom keeps the sums of nested loops in registers by itself. With these operations a
kernel says so: a vector is a value like a number, and LLVM makes one or more registers of it on
whatever processor there is.
"""

from __future__ import annotations

from typing import Any

import numba
import numpy as np
import numpy.typing as npt
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic, models, register_model

LANES = 16
LOG2_E = 1.4426950408889634

Floats = npt.NDArray[np.float32]

_ONE = np.float32(1.0)
# 2**f = 1 + f * (P1 + f * (P2 + ...)) on [-0.5, 0.5], with a relative error of 1e-7.
_P1 = np.float32(0.6931471824645996)
_P2 = np.float32(0.24022650718688965)
_P3 = np.float32(0.055503569543361664)
_P4 = np.float32(0.009618056938052177)
_P5 = np.float32(0.0013390866806730628)
_P6 = np.float32(0.00015461447765119374)
# The same of three terms, with a relative error of 1e-4.
_Q1 = np.float32(0.69328293)
_Q2 = np.float32(0.24221097)
_Q3 = np.float32(0.05500893)
_LOWEST_EXPONENT = np.float32(-126.0)
_HIGHEST_EXPONENT = np.float32(126.0)

_INT = ir.IntType(32)
_FLOATS = ir.VectorType(ir.FloatType(), LANES)
_INTS = ir.VectorType(_INT, LANES)
_BYTES = ir.IntType(8).as_pointer()
_FLOAT_BYTES = 4


class Float32x16(types.Type):  # type: ignore[misc]  # numba has no types
    """The type of a vector, as numba knows it."""

    def __init__(self) -> None:
        super().__init__(name="Float32x16")


@register_model(Float32x16)
class _VectorModel(models.PrimitiveModel):  # type: ignore[misc]
    def __init__(self, manager: Any, numba_type: Any) -> None:
        super().__init__(manager, numba_type, _FLOATS)


float32x16 = Float32x16()

# Each of the following is a function for kernels alone. Its body tells numba the types, and how
# to emit the code; the first parameter is numba's own.


@intrinsic
def load(typing: Any, array: Any, index: Any) -> Any:
    """Returns the sixteen elements of a flat array that begin at `index`."""

    def emit(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        pointer = _pointer(context, builder, signature.args[0], *arguments)
        return builder.load(pointer, align=_FLOAT_BYTES)

    return float32x16(array, types.intp), emit


@intrinsic
def store(typing: Any, array: Any, index: Any, vector: Any) -> Any:
    """Writes a vector to the sixteen elements of a flat array that begin at `index`."""

    def emit(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        pointer = _pointer(context, builder, signature.args[0], *arguments[:2])
        builder.store(arguments[2], pointer, align=_FLOAT_BYTES)
        return context.get_dummy_value()

    return types.void(array, types.intp, float32x16), emit


@intrinsic
def prefetch(typing: Any, array: Any, index: Any) -> Any:
    """Asks for the line of a flat array around an index, which may lie beyond its end.

    It goes to the second cache: a core can ask for more lines at once than the first one awaits.
    """

    def emit(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        fetch(builder, _pointer(context, builder, signature.args[0], *arguments), nearness=2)
        return context.get_dummy_value()

    return types.void(array, types.intp), emit


@intrinsic
def prefetch_to_write(typing: Any, array: Any, index: Any) -> Any:
    """Asks for a line that will be written, so that no other core has it then."""

    def emit(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        place = _pointer(context, builder, signature.args[0], *arguments)
        fetch(builder, place, to_write=True)
        return context.get_dummy_value()

    return types.void(array, types.intp), emit


@intrinsic
def splat(typing: Any, number: Any) -> Any:
    """Returns a vector whose elements all are one number."""

    def emit(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return _splat(builder, arguments[0])

    return float32x16(types.float32), emit


@intrinsic
def add(typing: Any, a: Any, b: Any) -> Any:
    """Returns a + b."""
    return float32x16(float32x16, float32x16), lambda _, builder, __, arguments: builder.fadd(
        *arguments
    )


@intrinsic
def sub(typing: Any, a: Any, b: Any) -> Any:
    """Returns a - b."""
    return float32x16(float32x16, float32x16), lambda _, builder, __, arguments: builder.fsub(
        *arguments
    )


@intrinsic
def mul(typing: Any, a: Any, b: Any) -> Any:
    """Returns a * b."""
    return float32x16(float32x16, float32x16), lambda _, builder, __, arguments: builder.fmul(
        *arguments
    )


@intrinsic
def div(typing: Any, a: Any, b: Any) -> Any:
    """Returns a / b."""
    return float32x16(float32x16, float32x16), lambda _, builder, __, arguments: builder.fdiv(
        *arguments
    )


@intrinsic
def maximum(typing: Any, a: Any, b: Any) -> Any:
    """Returns the larger of a and b, element by element."""
    return float32x16(float32x16, float32x16), lambda _, builder, __, arguments: _larger(
        builder, *arguments
    )


@intrinsic
def minimum(typing: Any, a: Any, b: Any) -> Any:
    """Returns the smaller of a and b, element by element."""

    def emit(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.select(builder.fcmp_ordered("<", *arguments), *arguments)

    return float32x16(float32x16, float32x16), emit


@intrinsic
def between(typing: Any, a: Any, start: Any, stop: Any, other: Any) -> Any:
    """Returns the elements at [start, stop), and another number in place of the rest."""

    def emit(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        vector, start, stop, other = arguments
        lanes = ir.Constant(_INTS, [*range(LANES)])
        first, last = (
            _splat(builder, builder.trunc(bound, _INT), _INTS) for bound in (start, stop)
        )
        is_inside = builder.and_(
            builder.icmp_signed(">=", lanes, first), builder.icmp_signed("<", lanes, last)
        )
        return builder.select(is_inside, vector, _splat(builder, other))

    return float32x16(float32x16, types.intp, types.intp, types.float32), emit


@intrinsic
def fma(typing: Any, a: Any, b: Any, c: Any) -> Any:
    """Returns a * b + c, rounded once."""

    def emit(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return _call(builder, "llvm.fma.v16f32", arguments)

    return float32x16(float32x16, float32x16, float32x16), emit


@intrinsic
def rint(typing: Any, a: Any) -> Any:
    """Returns the nearest whole numbers."""

    def emit(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return _call(builder, "llvm.rint.v16f32", arguments)

    return float32x16(float32x16), emit


@intrinsic
def scale_by_power(typing: Any, a: Any, whole: Any) -> Any:
    """Returns a * 2**whole, for a in [0.5, 2) and whole numbers in [-126, 126]."""

    def emit(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        number, whole = arguments
        exponent = builder.shl(builder.fptosi(whole, _INTS), ir.Constant(_INTS, [23] * LANES))
        return builder.bitcast(builder.add(builder.bitcast(number, _INTS), exponent), _FLOATS)

    return float32x16(float32x16, float32x16), emit


@intrinsic
def sum_of(typing: Any, a: Any) -> Any:
    """Returns the sum of the elements, as a number."""

    def emit(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return _reduce(builder, arguments[0], lambda builder, a, b: builder.fadd(a, b))

    return types.float32(float32x16), emit


@intrinsic
def exceeds(typing: Any, a: Any, number: Any) -> Any:
    """Returns whether any element is larger than a number."""

    def emit(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        larger = builder.fcmp_ordered(">", arguments[0], _splat(builder, arguments[1]))
        bits = builder.bitcast(larger, ir.IntType(LANES))
        return builder.icmp_unsigned("!=", bits, ir.IntType(LANES)(0))

    return types.boolean(float32x16, types.float32), emit


@intrinsic
def max_of(typing: Any, a: Any) -> Any:
    """Returns the largest element, as a number."""

    def emit(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return _reduce(builder, arguments[0], _larger)

    return types.float32(float32x16), emit


@numba.njit(nogil=True, inline="always")
def exponential(x: Any) -> Any:
    """Returns e**x, kept between 2**-126 and 2**126."""
    return exponential2(minimum(mul(x, splat(np.float32(LOG2_E))), splat(_HIGHEST_EXPONENT)))


@numba.njit(nogil=True, inline="always")
def exponential2(x: Any) -> Any:
    """Returns 2**x for x up to 126, and at least 2**-126."""
    x = maximum(x, splat(_LOWEST_EXPONENT))
    whole = rint(x)
    f = sub(x, whole)
    power = fma(f, splat(_P6), splat(_P5))
    power = fma(f, power, splat(_P4))
    power = fma(f, power, splat(_P3))
    power = fma(f, power, splat(_P2))
    power = fma(f, power, splat(_P1))
    return scale_by_power(fma(f, power, splat(_ONE)), whole)


@numba.njit(nogil=True, inline="always")
def about_exponential2(x: Any) -> Any:
    """Returns `exponential2` to within 1e-4 of it, which 16 bits do not tell apart."""
    x = maximum(x, splat(_LOWEST_EXPONENT))
    whole = rint(x)
    f = sub(x, whole)
    power = fma(f, splat(_Q3), splat(_Q2))
    power = fma(f, power, splat(_Q1))
    return scale_by_power(fma(f, power, splat(_ONE)), whole)


def fetch(builder: Any, pointer: Any, *, to_write: bool = False, nearness: int = 3) -> None:
    """Emits the order to bring a line into a core's first cache, or second for a nearness of 2."""
    operands = [_BYTES, _INT, _INT, _INT]
    function_type = ir.FunctionType(ir.VoidType(), operands)
    order = cgutils.get_or_insert_function(builder.module, function_type, "llvm.prefetch.p0i8")
    line = builder.bitcast(pointer, _BYTES)
    builder.call(order, [line, _INT(int(to_write)), _INT(nearness), _INT(1)])


def _pointer(context: Any, builder: Any, array_type: Any, array: Any, index: Any) -> Any:
    data = context.make_array(array_type)(context, builder, array).data
    return builder.bitcast(builder.gep(data, [index]), _FLOATS.as_pointer())


def _call(builder: Any, name: str, arguments: Any) -> Any:
    function_type = ir.FunctionType(_FLOATS, [_FLOATS] * len(arguments))
    return builder.call(
        cgutils.get_or_insert_function(builder.module, function_type, name), arguments
    )


def _splat(builder: Any, number: Any, kind: Any = _FLOATS) -> Any:
    undefined = ir.Constant(kind, ir.Undefined)
    first = builder.insert_element(undefined, number, _INT(0))
    return builder.shuffle_vector(first, undefined, ir.Constant(_INTS, [_INT(0)] * LANES))


def _larger(builder: Any, a: Any, b: Any) -> Any:
    return builder.select(builder.fcmp_ordered(">", a, b), a, b)


def _reduce(builder: Any, vector: Any, combine: Any) -> Any:
    """Combines the halves of a vector until one element is left."""
    width = LANES
    while width > 1:
        width //= 2
        halves = (
            builder.shuffle_vector(
                vector,
                ir.Constant(vector.type, ir.Undefined),
                ir.Constant(ir.VectorType(_INT, width), [_INT(first + i) for i in range(width)]),
            )
            for first in (0, width)
        )
        vector = combine(builder, *halves)
    return builder.extract_element(vector, _INT(0))
