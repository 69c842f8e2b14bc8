"""The innermost part of a matrix product of whole numbers; see `matmul_tile` for that of floats.

Weights lie in groups of four of one output, which one instruction multiplies and sums (VNNI), or
three do. The three hold sums of two products in 16 bits, for which activations must be smaller.
Sums are exact.
"""

from __future__ import annotations

from typing import Any

from llvmlite import binding, ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from furiosa_llm.modeling.matmul_tile import PANEL_VECTORS, PANEL_WIDTH, Tile, emit_cases
from furiosa_llm.modeling.simd import LANES

_FEATURES = binding.get_host_cpu_features()
_HAS_VNNI = bool(_FEATURES.get("avx512vnni"))
_HAS_AVX2 = bool(_FEATURES.get("avx2"))

GROUP = 4  # inputs that are multiplied and summed at once
GROUP_WIDTH = GROUP * PANEL_WIDTH  # weights of a panel that are read at once
LARGEST_WEIGHT = 127
LARGEST_INPUT = 127 if _HAS_VNNI else 63
ZERO_POINT = LARGEST_INPUT + 1  # what stands for 0 among activations

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
        inputs: uint8, D a multiple of `GROUP`.
        i: See above.
        input_stride: Elements from one row to the next.
        weights: int8, [D / GROUP, W, GROUP].
        w: See above.
        depth: D / GROUP, at least 1.
        ahead: A pair: with each group of weights, as many are fetched that lie this far beyond
            `w`, and for each group this much further.
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
            weights=(weights, _INT64(GROUP_WIDTH)),
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

    line_size = LANES * GROUP

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
            builder, num_vectors=PANEL_VECTORS, cache=1, depth=depth, ahead=ahead, output=output
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
            weights = [self._group(d, vector) for vector in vectors]
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

    def _group(self, d: Any, vector: int) -> Any:
        """Weights of a group of inputs for the outputs of a vector, as they are multiplied."""
        builder = self._builder
        pointer, stride = self._weights
        start = builder.gep(pointer, [builder.mul(d, stride)])
        start = builder.gep(start, [_INT64(vector * LANES * GROUP)])
        return builder.load(builder.bitcast(start, _BYTES.as_pointer()), align=1)

    def _numbers(self, row: Any, d: Any) -> Any:
        """A group of activations, once for each output of a vector."""
        builder = self._builder
        start = builder.gep(row, [builder.mul(d, _INT64(GROUP))])
        word = builder.load(builder.bitcast(start, _INT32.as_pointer()), align=1)
        return builder.bitcast(self._splat(word, _SUMS), _BYTES)

    def _add_products(self, total: Any, numbers: Any, weights: Any) -> Any:
        if _HAS_VNNI:
            name, words = "llvm.x86.avx512.vpdpbusd.512", ir.FunctionType(_SUMS, [_SUMS] * 3)
            operation = cgutils.get_or_insert_function(self._builder.module, words, name)
            operands = [self._builder.bitcast(vector, _SUMS) for vector in (numbers, weights)]
            return self._builder.call(operation, [total, *operands])
        sums = _sums_by_avx2 if _HAS_AVX2 else _sums_anywhere
        return self._builder.add(total, sums(self._builder, numbers, weights))


def _sums_by_avx2(builder: Any, numbers: Any, weights: Any) -> Any:
    """Returns the sums of products of each group, [LANES]."""
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
        operands = [_taken(builder, part, range(start, start + 32)) for part in (numbers, weights)]
        parts.append(builder.call(widen, [builder.call(multiply, operands), ones]))
    return builder.shuffle_vector(*parts, _indices(range(LANES)))


def _sums_anywhere(builder: Any, numbers: Any, weights: Any) -> Any:
    """Returns the same, where there is no instruction for it."""
    wide = ir.VectorType(_INT32, LANES * GROUP)
    products = builder.mul(builder.zext(numbers, wide), builder.sext(weights, wide))
    total = _taken(builder, products, range(0, LANES * GROUP, GROUP))
    for place in range(1, GROUP):
        total = builder.add(total, _taken(builder, products, range(place, LANES * GROUP, GROUP)))
    return total


def _taken(builder: Any, vector: Any, places: range) -> Any:
    return builder.shuffle_vector(vector, ir.Constant(vector.type, ir.Undefined), _indices(places))


def _indices(places: range) -> Any:
    return ir.Constant(ir.VectorType(_INT32, len(places)), [_INT32(place) for place in places])
