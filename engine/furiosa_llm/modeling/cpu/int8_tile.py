"""The innermost part of a matrix product of whole numbers; see `matmul_tile` for that of floats.

Weights lie in groups of four of one output, which one instruction multiplies and sums (VNNI). Where
there is none, sums of four products are held in 16 bits: activations must be smaller, and so must
be weights that meet in a sum (`MOST_OF_A_SUM`). Sums are exact.
"""

from __future__ import annotations

import functools
from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from furiosa_llm.modeling.cpu import processor
from furiosa_llm.modeling.cpu.amx import HAS_AMX, TILE_BYTES
from furiosa_llm.modeling.cpu.matmul_tile import PANEL_VECTORS, PANEL_WIDTH, Tile, emit_cases
from furiosa_llm.modeling.cpu.simd import LANES, fetch

_HAS_VNNI = processor.has("avx512vnni")
_HAS_AVX2 = processor.has("avx2")

GROUP = 4  # inputs whose weights lie side by side
GROUP_WIDTH = GROUP * PANEL_WIDTH  # weights of a group of inputs in a panel
STEP_GROUPS = 2  # that are multiplied and summed at once
STEP = STEP_GROUPS * GROUP  # inputs of them
INPUT_MULTIPLE = TILE_BYTES if HAS_AMX else STEP  # that inputs are filled up to
LARGEST_WEIGHT = 127
LARGEST_INPUT = 127 if _HAS_VNNI else 63
ZERO_POINT = LARGEST_INPUT + 1  # what stands for 0 among activations
# Those of one sign among the four weights of a sum in 16 bits may add up to this.
MOST_OF_A_SUM = None if _HAS_VNNI or not _HAS_AVX2 else (2**15 - 1) // (ZERO_POINT + LARGEST_INPUT)

_INT8, _INT16, _INT32, _INT64 = (ir.IntType(bits) for bits in (8, 16, 32, 64))
_FLOATS = ir.VectorType(ir.FloatType(), LANES)
_SUMS = ir.VectorType(_INT32, LANES)
_BYTES = ir.VectorType(_INT8, LANES * GROUP)


@intrinsic
def multiply_int8_tile(
    typing: Any,
    num_rows: Any,
    inputs: Any,
    i: Any,
    input_stride: Any,
    weights: Any,
    w: Any,
    depth: Any,
    ahead: Any,
    initial: Any,
    factors: Any,
    bias: Any,
    o: Any,
    scales: Any,
    s: Any,
    output: Any,
    p: Any,
    output_stride: Any,
) -> Any:
    """Writes output [R, W] = (initial [W] + inputs [R, D] @ weights [D, W]) * scales + bias.

    All arrays are flat; the part of each begins at the index that follows it.

    Args:
        typing: numba's own.
        num_rows: R, from 1 to `MAX_TILE_ROWS`.
        inputs: uint8, D a multiple of `STEP`.
        i: See above.
        input_stride: Elements from one row to the next.
        weights: int8, [D / GROUP, W, GROUP].
        w: See above.
        depth: D / STEP, at least 1.
        ahead: A pair: with each step, as many weights are fetched that lie this far beyond `w`,
            and for each step this much further.
        initial: [W] int32; with factors [W] and bias [W], float32, at the same place.
        factors: Of each output.
        bias: Of each output.
        o: Where these three begin.
        scales: [R] float32, factors of each row.
        s: See above.
        output: [R, W] float32.
        p: See above.
        output_stride: Elements from one row to the next.
    """
    size = types.intp
    arguments = (
        *(size, inputs, size, size, weights, size, size, types.UniTuple(size, 2)),
        *(initial, factors, bias, size, scales, size, output, size, size),
    )

    def emit(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        def place(index: int, start: int) -> Any:
            array = context.make_array(signature.args[index])(context, builder, values[index])
            return builder.gep(array.data, [values[start]])

        weights = place(4, 5)
        start, step = (builder.extract_value(values[7], part) for part in (0, 1))
        tile = _Int8Tile(
            builder,
            depth=values[6],
            inputs=(place(1, 2), values[3]),
            weights=(weights, _INT64(STEP_GROUPS * GROUP_WIDTH)),
            ahead=(builder.gep(weights, [start]), step),
            columns=(place(8, 11), place(9, 11), place(10, 11)),
            scales=place(12, 13),
            output=(place(14, 15), values[16]),
        )
        emit_cases(builder, tile, num_rows=values[0])
        return context.get_dummy_value()

    return types.void(*arguments), emit


class _Int8Tile(Tile):
    """Emits the code of tiles with a known number of rows. Pairs are a pointer and a stride."""

    def __init__(
        self,
        builder: Any,
        *,
        depth: Any,
        inputs: tuple[Any, Any],
        weights: tuple[Any, Any],
        ahead: tuple[Any, Any],
        columns: tuple[Any, Any, Any],
        scales: Any,
        output: tuple[Any, Any],
    ) -> None:
        super().__init__(
            builder, num_vectors=PANEL_VECTORS, depth=depth, ahead=ahead, output=output
        )
        self._inputs, self._weights = inputs, weights
        self._initial, self._factors, self._bias = columns
        self._scales = scales

    def emit(self, num_rows: int) -> None:
        """Emits the sums of so many rows, and what scales and writes them."""
        builder = self._builder
        rows = [self._row(self._inputs, row) for row in range(num_rows)]
        vectors = range(self._num_vectors)
        initial = [self._column(self._initial, vector, _SUMS) for vector in vectors]
        places = [(row, vector) for row in range(num_rows) for vector in vectors]
        self._fetch_output(places)

        def products(d: Any, sums: list[Any]) -> list[Any]:
            weights = [self._weights_of(d, vector) for vector in vectors]
            numbers = [self._numbers(row, d) for row in rows]
            return [
                self._add_products(total, numbers[row], weights[vector])
                for (row, vector), total in zip(places, sums, strict=True)
            ]

        sums = self._emit_loop([initial[vector] for _, vector in places], products)
        factors = [self._column(self._factors, vector, _FLOATS) for vector in vectors]
        bias = [self._column(self._bias, vector, _FLOATS) for vector in vectors]
        for (row, vector), total in zip(places, sums, strict=True):
            scale = self._splat(builder.load(builder.gep(self._scales, [_INT64(row)])), _FLOATS)
            scaled = builder.fmul(builder.sitofp(total, _FLOATS), factors[vector])
            result = builder.fadd(builder.fmul(scaled, scale), bias[vector])
            self._store(result, row, vector)

    def _column(self, start: Any, vector: int, kind: Any) -> Any:
        pointer = self._builder.gep(start, [_INT64(vector * LANES)])
        return self._builder.load(self._builder.bitcast(pointer, kind.as_pointer()), align=4)

    def _weights_of(self, d: Any, vector: int) -> list[Any]:
        """Weights of a step for the outputs of a vector, group by group."""
        builder = self._builder
        pointer, stride = self._weights
        step = builder.gep(pointer, [builder.mul(d, stride)])
        starts = [
            builder.gep(step, [_INT64(group * GROUP_WIDTH + vector * LANES * GROUP)])
            for group in range(STEP_GROUPS)
        ]
        return [
            builder.load(builder.bitcast(start, _BYTES.as_pointer()), align=1) for start in starts
        ]

    def _numbers(self, row: Any, d: Any) -> list[Any]:
        """Activations of a step, each group once for each output of a vector."""
        builder = self._builder
        step = builder.gep(row, [builder.mul(d, _INT64(STEP))])
        starts = [builder.gep(step, [_INT64(group * GROUP)]) for group in range(STEP_GROUPS)]
        words = [
            builder.load(builder.bitcast(start, _INT32.as_pointer()), align=1) for start in starts
        ]
        return [builder.bitcast(self._splat(word, _SUMS), _BYTES) for word in words]

    def _add_products(self, total: Any, numbers: list[Any], weights: list[Any]) -> Any:
        if _HAS_VNNI:
            name, words = "llvm.x86.avx512.vpdpbusd.512", ir.FunctionType(_SUMS, [_SUMS] * 3)
            operation = cgutils.get_or_insert_function(self._builder.module, words, name)
            for group in zip(numbers, weights, strict=True):
                operands = [self._builder.bitcast(vector, _SUMS) for vector in group]
                total = self._builder.call(operation, [total, *operands])
            return total
        sums = _sums_by_avx2 if _HAS_AVX2 else _sums_anywhere
        return self._builder.add(total, sums(self._builder, numbers, weights))

    def _fetch_ahead(self, start: Any) -> None:
        for line in range(STEP_GROUPS * self._num_vectors):
            fetch(self._builder, self._builder.gep(start, [_INT64(line * LANES * GROUP)]))


def _sums_by_avx2(builder: Any, numbers: list[Any], weights: list[Any]) -> Any:
    """Returns the sums of a step's products for each output, [LANES]."""
    half, pairs = ir.VectorType(_INT8, 32), ir.VectorType(_INT16, 16)
    sums = ir.VectorType(_INT32, 8)
    multiply, widen = (
        cgutils.get_or_insert_function(builder.module, ir.FunctionType(*kinds), name)
        for name, *kinds in (
            ("llvm.x86.avx2.pmadd.ub.sw", pairs, [half, half]),
            ("llvm.x86.avx2.pmadd.wd", sums, [pairs, pairs]),
        )
    )
    ones = ir.Constant(pairs, [_INT16(1)] * 16)
    parts = []
    for start in (0, 32):
        places = range(start, start + 32)
        products = [
            builder.call(multiply, [_taken(builder, part, places) for part in group])
            for group in zip(numbers, weights, strict=True)
        ]
        parts.append(builder.call(widen, [functools.reduce(builder.add, products), ones]))
    return builder.shuffle_vector(*parts, _indices(range(LANES)))


def _sums_anywhere(builder: Any, numbers: list[Any], weights: list[Any]) -> Any:
    """Returns the same, where there is no instruction for it."""
    wide = ir.VectorType(_INT32, LANES * GROUP)
    products = [
        builder.mul(builder.zext(number, wide), builder.sext(weight, wide))
        for number, weight in zip(numbers, weights, strict=True)
    ]
    terms = [
        _taken(builder, product, range(place, LANES * GROUP, GROUP))
        for product in products
        for place in range(GROUP)
    ]
    return functools.reduce(builder.add, terms)


def _taken(builder: Any, vector: Any, places: range) -> Any:
    return builder.shuffle_vector(vector, ir.Constant(vector.type, ir.Undefined), _indices(places))


def _indices(places: range) -> Any:
    return ir.Constant(ir.VectorType(_INT32, len(places)), [_INT32(place) for place in places])
