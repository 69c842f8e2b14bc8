"""Tiles of a product of float32 matrices; see `matmul_tile`."""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from furiosa_llm.modeling.cpu.bfloat16 import BFLOAT16_BITS, UPPER_BITS, BFloat16
from furiosa_llm.modeling.cpu.matmul_tile import (
    HAS_32_WIDE_REGISTERS,
    MAX_TILE_ROWS,
    Tile,
    emit_cases,
)
from furiosa_llm.modeling.cpu.simd import LANES

_INT64 = ir.IntType(64)
_REGISTER_LANES = LANES if HAS_32_WIDE_REGISTERS else LANES // 2
_REGISTER = ir.VectorType(ir.FloatType(), _REGISTER_LANES)
_PAIRS = ir.VectorType(ir.IntType(32), _REGISTER_LANES)


def tile_product(num_vectors: int, *, fetches_ahead: bool, max_rows: int = MAX_TILE_ROWS) -> Any:
    """Makes a kernel's function that multiplies tiles of so many vectors in width.

    Args:
        num_vectors: Width of a tile.
        fetches_ahead: Whether it asks for what is said to be needed next.
        max_rows: Most rows of a tile; with fewer it compiles faster.
    """

    @intrinsic
    def multiply(
        typing: Any,
        num_rows: Any,
        inputs: Any,
        i: Any,
        input_stride: Any,
        weights: Any,
        w: Any,
        weight_stride: Any,
        depth: Any,
        ahead: Any,
        initial: Any,
        s: Any,
        initial_stride: Any,
        output: Any,
        o: Any,
        output_stride: Any,
    ) -> Any:
        """Writes output [R, W] = initial [R, W] + inputs [R, D] @ weights [D, W].

        All arrays are flat; the part of each begins at the index that follows it, and its rows lie
        a stride apart. A stride of 0 repeats a row. Numbers are float32. Those of weights may be
        pairs instead (see `cache_cells`), of the rows 2d and 2d + 1; inputs may be pairs, too,
        where a processor multiplies such.

        Args:
            typing: numba's own.
            num_rows: R, from 1 to `max_rows`.
            inputs: See above.
            i: See above.
            input_stride: See above.
            weights: See above.
            w: See above.
            weight_stride: See above.
            depth: Rows of weights, or of pairs of them, at least 1.
            ahead: A pair: with each row of weights, as many elements are fetched that lie this far
                beyond `w`, and for each row this much further.
            initial: See above.
            s: See above.
            initial_stride: See above.
            output: See above.
            o: See above.
            output_stride: See above.
        """
        size = types.intp
        arguments = (
            *(size, inputs, size, size, weights, size, size, size, types.UniTuple(size, 2)),
            *(initial, size, size, output, size, size),
        )

        def emit(context: Any, builder: Any, signature: Any, values: Any) -> Any:
            def matrix(place: int) -> tuple[Any, Any]:
                array = context.make_array(signature.args[place])(context, builder, values[place])
                return builder.gep(array.data, [values[place + 1]]), values[place + 2]

            weights = matrix(4)
            start, step = (builder.extract_value(values[8], part) for part in (0, 1))
            ahead = builder.gep(weights[0], [start]), step
            tile = _FloatTile
            if signature.args[4].dtype == types.int32:
                tile = _PairTile if signature.args[1].dtype == types.int32 else _SplitPairTile
            emit_cases(
                builder,
                tile(
                    builder,
                    num_vectors=num_vectors,
                    depth=values[7],
                    inputs=matrix(1),
                    weights=weights,
                    ahead=ahead if fetches_ahead else None,
                    initial=matrix(9),
                    output=matrix(12),
                ),
                num_rows=values[0],
                max_rows=max_rows,
            )
            return context.get_dummy_value()

        return types.void(*arguments), emit

    return multiply


class _FloatTile(Tile):
    """Multiplies floats with floats."""

    _num_parts = 1  # numbers of a step in the depth that are multiplied one after the other

    def __init__(
        self,
        builder: Any,
        *,
        num_vectors: int,
        depth: Any,
        inputs: tuple[Any, Any],
        weights: tuple[Any, Any],
        ahead: tuple[Any, Any] | None,
        initial: tuple[Any, Any],
        output: tuple[Any, Any],
    ) -> None:
        super().__init__(builder, num_vectors=num_vectors, depth=depth, ahead=ahead, output=output)
        self._inputs, self._weights, self._initial = inputs, weights, initial
        self._width = num_vectors * LANES // _REGISTER_LANES
        self._fma = cgutils.get_or_insert_function(
            builder.module,
            ir.FunctionType(_REGISTER, [_REGISTER] * 3),
            f"llvm.fma.v{_REGISTER_LANES}f32",
        )

    def emit(self, num_rows: int) -> None:
        """Emits the sums of so many rows, and what writes them."""
        places = [(row, column) for row in range(num_rows) for column in range(self._width)]
        rows = [self._row(self._inputs, row) for row in range(num_rows)]
        initial = [self._load(self._initial, *place, _REGISTER) for place in places]
        self._fetch_output((row, i) for row in range(num_rows) for i in range(self._num_vectors))
        columns = range(self._width)

        def products(d: Any, sums: list[Any]) -> list[Any]:
            totals = dict(zip(places, sums, strict=True))

            def add(row: int, column: int, number: Any, weight: Any) -> None:
                totals[row, column] = self._add_product(totals[row, column], number, weight)

            # The fewer of the two are loaded first: so many registers are left beside the sums.
            for part in range(self._num_parts):
                if num_rows < self._width:
                    numbers = [self._number(row, d, part) for row in rows]
                    for column in columns:
                        weight = self._weight(d, column, part)
                        for row, number in enumerate(numbers):
                            add(row, column, number, weight)
                else:
                    weights = [self._weight(d, column, part) for column in columns]
                    for row, pointer in enumerate(rows):
                        number = self._number(pointer, d, part)
                        for column, weight in enumerate(weights):
                            add(row, column, number, weight)
            return [totals[place] for place in places]

        for place, total in zip(places, self._emit_loop(initial, products), strict=True):
            self._store(total, *place)

    def _number(self, row: Any, d: Any, part: int) -> Any:
        """The input that all weights of a row of them are multiplied by."""
        place = self._builder.add(self._builder.mul(d, _INT64(self._num_parts)), _INT64(part))
        return self._splat(self._builder.load(self._builder.gep(row, [place])), _REGISTER)

    def _weight(self, d: Any, column: int, part: int) -> Any:
        return self._weights_of(d, column, _REGISTER)

    def _weights_of(self, d: Any, column: int, kind: Any) -> Any:
        pointer, stride = self._weights
        line = self._builder.gep(pointer, [self._builder.mul(d, stride)])
        return self._load((line, _INT64(0)), 0, column, kind)

    def _add_product(self, total: Any, number: Any, weight: Any) -> Any:
        return self._builder.call(self._fma, [number, weight, total])


class _PairTile(_FloatTile):
    """Multiplies pairs with pairs."""

    def _number(self, row: Any, d: Any, part: int) -> Any:
        return self._splat(self._builder.load(self._builder.gep(row, [d])), _PAIRS)

    def _weight(self, d: Any, column: int, part: int) -> Any:
        return self._weights_of(d, column, _PAIRS)

    def _add_product(self, total: Any, number: Any, weight: Any) -> Any:
        kind = ir.VectorType(BFloat16(), 2 * LANES)
        operation = cgutils.get_or_insert_function(
            self._builder.module,
            ir.FunctionType(_REGISTER, [_REGISTER, kind, kind]),
            "llvm.x86.avx512bf16.dpbf16ps.512",
        )
        pairs = [self._builder.bitcast(vector, kind) for vector in (number, weight)]
        return self._builder.call(operation, [total, *pairs])


class _SplitPairTile(_FloatTile):
    """Multiplies floats with pairs, the first numbers of all pairs before the second ones."""

    _num_parts = 2

    def _weight(self, d: Any, column: int, part: int) -> Any:
        pairs = self._weights_of(d, column, _PAIRS)
        if part == 0:
            bits = self._builder.shl(pairs, ir.Constant(_PAIRS, [BFLOAT16_BITS] * _PAIRS.count))
        else:
            bits = self._builder.and_(pairs, ir.Constant(_PAIRS, [UPPER_BITS] * _PAIRS.count))
        return self._builder.bitcast(bits, _REGISTER)
