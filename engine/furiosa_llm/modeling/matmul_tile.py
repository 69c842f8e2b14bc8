"""The innermost part of a matrix product, which a compiler would not keep in registers by itself.

A tile is a few rows of the result times the width of a panel of weights (Goto and van de Geijn,
Anatomy of high-performance matrix multiplication, 2008). Its sums stay in registers until they are
complete, while weights stream past; those of the next panel are asked for ahead of time. An
element of the result is summed in the same order whatever tile it lies in.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

from llvmlite import binding, ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from furiosa_llm.modeling.simd import LANES, fetch

_HAS_32_WIDE_REGISTERS = bool(binding.get_host_cpu_features().get("avx512f"))  # else 16 of half

PANEL_VECTORS = 2 if _HAS_32_WIDE_REGISTERS else 1
PANEL_WIDTH = PANEL_VECTORS * LANES
MAX_TILE_ROWS = 14 if _HAS_32_WIDE_REGISTERS else 6

_INT32, _INT64 = ir.IntType(32), ir.IntType(64)
_FLOATS = ir.VectorType(ir.FloatType(), LANES)
_FIRST = ir.Constant(ir.VectorType(_INT32, LANES), [_INT32(0)] * LANES)
_FLOAT_BYTES = 4


def tile_product(num_vectors: int, *, cache: int, max_rows: int = MAX_TILE_ROWS) -> Any:
    """Makes a kernel's function that multiplies tiles of so many vectors in width.

    What it fetches ahead goes into the first or second cache of a core. Tiles with less than
    `max_rows` rows compile faster.
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

        All arrays are flat and float32; the part of each begins at the index that follows it, and
        its rows lie a stride apart. A stride of 0 repeats a row.

        Args:
            typing: numba's own.
            num_rows: R, from 1 to `max_rows`.
            inputs: See above.
            i: See above.
            input_stride: See above.
            weights: See above.
            w: See above.
            weight_stride: See above.
            depth: D, at least 1.
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
            emit_cases(
                builder,
                _FloatTile(
                    builder,
                    num_vectors=num_vectors,
                    cache=cache,
                    depth=values[7],
                    inputs=matrix(1),
                    weights=weights,
                    ahead=(builder.gep(weights[0], [start]), step),
                    initial=matrix(9),
                    output=matrix(12),
                ),
                num_rows=values[0],
                max_rows=max_rows,
            )
            return context.get_dummy_value()

        return types.void(*arguments), emit

    return multiply


def emit_cases(builder: Any, tile: Tile, *, num_rows: Any, max_rows: int = MAX_TILE_ROWS) -> None:
    """Emits a tile for each number of rows, and the choice between them."""
    end = builder.append_basic_block("tile.end")
    switch = builder.switch(num_rows, end)
    for rows in range(1, max_rows + 1):
        block = builder.append_basic_block(f"tile.{rows}")
        switch.add_case(_INT64(rows), block)
        builder.position_at_end(block)
        tile.emit(rows)
        builder.branch(end)
    builder.position_at_end(end)


class Tile:
    """Emits the code of tiles with a known number of rows. Pairs are a pointer and a stride."""

    def __init__(
        self,
        builder: Any,
        *,
        num_vectors: int,
        cache: int,
        depth: Any,
        ahead: tuple[Any, Any],
        output: tuple[Any, Any],
    ) -> None:
        self._builder = builder
        self._num_vectors, self._cache, self._depth = num_vectors, cache, depth
        self._ahead, self._output = ahead, output

    def emit(self, num_rows: int) -> None:
        """Emits the sums of so many rows, and what writes them."""
        raise NotImplementedError

    def _emit_loop(
        self, initial: Sequence[Any], products: Callable[[Any, list[Any]], list[Any]]
    ) -> list[Any]:
        """Emits a loop over the depth, and returns the sums at its end.

        Args:
            initial: The sums before it.
            products: Takes the place in the depth and the sums, and returns the sums that follow.
        """
        builder = self._builder
        before, loop = builder.block, builder.append_basic_block("depth")
        builder.branch(loop)
        builder.position_at_end(loop)
        d = builder.phi(_INT64)
        sums = [builder.phi(total.type) for total in initial]
        self._fetch_ahead(d)
        results = products(d, sums)
        following = self._opaque(builder.add(d, _INT64(1)))
        for phi, first, later in zip(
            [d, *sums], [_INT64(0), *initial], [following, *results], strict=True
        ):
            phi.add_incoming(first, before)
            phi.add_incoming(later, loop)
        after = builder.append_basic_block("depth.end")
        builder.cbranch(builder.icmp_signed("<", following, self._depth), loop, after)
        builder.position_at_end(after)
        return results

    def _row(self, matrix: tuple[Any, Any], row: int) -> Any:
        pointer, stride = matrix
        return self._builder.gep(pointer, [self._builder.mul(stride, _INT64(row))])

    def _at(self, matrix: tuple[Any, Any], row: int, vector: int) -> Any:
        start = self._builder.gep(self._row(matrix, row), [_INT64(vector * LANES)])
        return self._builder.bitcast(start, _FLOATS.as_pointer())

    def _store(self, result: Any, row: int, vector: int) -> None:
        self._builder.store(result, self._at(self._output, row, vector), align=_FLOAT_BYTES)

    def _fetch_output(self, places: Iterable[tuple[int, int]]) -> None:
        for place in places:
            fetch(self._builder, self._at(self._output, *place), to_write=True)

    def _fetch_ahead(self, d: Any) -> None:
        builder = self._builder
        pointer, stride = self._ahead
        start = builder.gep(pointer, [builder.mul(d, stride)])
        for vector in range(self._num_vectors):
            fetch(builder, builder.gep(start, [_INT64(vector * LANES)]), cache=self._cache)

    def _splat(self, number: Any, kind: Any) -> Any:
        undefined = ir.Constant(kind, ir.Undefined)
        first = self._builder.insert_element(undefined, number, _INT32(0))
        return self._builder.shuffle_vector(first, undefined, _FIRST)

    def _opaque(self, number: Any) -> Any:
        """Hides how a number comes about: a loop that LLVM cannot count is not unrolled.

        Unrolled, it would need more registers than there are.
        """
        same = ir.FunctionType(_INT64, [_INT64])
        return self._builder.asm(same, "", "=r,0", [number], side_effect=False)


class _FloatTile(Tile):
    def __init__(
        self,
        builder: Any,
        *,
        num_vectors: int,
        cache: int,
        depth: Any,
        inputs: tuple[Any, Any],
        weights: tuple[Any, Any],
        ahead: tuple[Any, Any],
        initial: tuple[Any, Any],
        output: tuple[Any, Any],
    ) -> None:
        super().__init__(
            builder, num_vectors=num_vectors, cache=cache, depth=depth, ahead=ahead, output=output
        )
        self._inputs, self._weights, self._initial = inputs, weights, initial
        self._fma = cgutils.get_or_insert_function(
            builder.module, ir.FunctionType(_FLOATS, [_FLOATS] * 3), f"llvm.fma.v{LANES}f32"
        )

    def emit(self, num_rows: int) -> None:
        """Emits the sums of so many rows, and what writes them."""
        builder = self._builder
        places = [(row, vector) for row in range(num_rows) for vector in range(self._num_vectors)]
        rows = [self._row(self._inputs, row) for row in range(num_rows)]
        initial = [builder.load(self._at(self._initial, *p), align=_FLOAT_BYTES) for p in places]
        self._fetch_output(places)

        def products(d: Any, sums: list[Any]) -> list[Any]:
            weights = [self._weight(d, vector) for vector in range(self._num_vectors)]
            numbers = [self._splat(builder.load(builder.gep(row, [d])), _FLOATS) for row in rows]
            return [
                builder.call(self._fma, [numbers[row], weights[vector], total])
                for (row, vector), total in zip(places, sums, strict=True)
            ]

        for place, product in zip(places, self._emit_loop(initial, products), strict=True):
            self._store(product, *place)

    def _weight(self, d: Any, vector: int) -> Any:
        pointer, stride = self._weights
        row = self._builder.gep(pointer, [self._builder.mul(d, stride)])
        return self._builder.load(self._at((row, _INT64(0)), 0, vector), align=_FLOAT_BYTES)
