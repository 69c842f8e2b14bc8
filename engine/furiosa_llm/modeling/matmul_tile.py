"""The innermost part of a matrix product, which a compiler would not keep in registers by itself.

A tile is a few rows of the result times the width of a panel of weights (Goto and van de Geijn,
Anatomy of high-performance matrix multiplication, 2008). Its sums stay in registers until they are
complete, while weights stream past; those of the next panel are asked for ahead of time. An
element of the result is summed in the same order whatever tile it lies in.
"""

from __future__ import annotations

from typing import Any

from llvmlite import binding, ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from furiosa_llm.modeling.simd import LANES

_HAS_32_WIDE_REGISTERS = bool(binding.get_host_cpu_features().get("avx512f"))  # else 16 of half

PANEL_VECTORS = 2 if _HAS_32_WIDE_REGISTERS else 1
PANEL_WIDTH = PANEL_VECTORS * LANES
MAX_TILE_ROWS = 14 if _HAS_32_WIDE_REGISTERS else 6

_INT32, _INT64 = ir.IntType(32), ir.IntType(64)
_BYTES = ir.IntType(8).as_pointer()
_FLOATS = ir.VectorType(ir.FloatType(), LANES)
_FIRST = ir.Constant(ir.VectorType(_INT32, LANES), [_INT32(0)] * LANES)
_FLOAT_BYTES = 4


@intrinsic
def multiply_tile(
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
    s: Any,
    initial_stride: Any,
    output: Any,
    o: Any,
    output_stride: Any,
) -> Any:
    """Writes output [R, W] = initial [R, W] + inputs [R, D] @ weights [D, W].

    All arrays are flat and float32; a part of each begins at the index that follows it.

    Args:
        typing: numba's own.
        num_rows: R, from 1 to `MAX_TILE_ROWS`.
        inputs: Rows lie `input_stride` apart.
        i: See above.
        input_stride: See there.
        weights: W = `PANEL_WIDTH` elements lie side by side.
        w: See above.
        depth: D, at least 1.
        ahead: Elements beyond `w` + `depth` * W where fetching ahead begins, and how many of them
            for each of the D, as a pair.
        initial: Rows lie `initial_stride` apart; 0 for the same in each row.
        s: See above.
        initial_stride: See there.
        output: Rows lie `output_stride` apart.
        o: See above.
        output_stride: See there.
    """
    size = types.intp
    signature = types.void(
        *(size, inputs, size, size, weights, size, size, types.UniTuple(size, 2)),
        *(initial, size, size, output, size, size),
    )
    return signature, _emit


def _emit(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
    (num_rows, inputs, i, input_stride, weights, w, depth, ahead) = arguments[:8]
    (initial, s, initial_stride, output, o, output_stride) = arguments[8:]

    def pointer(place: int, array: Any, index: Any) -> Any:
        data = context.make_array(signature.args[place])(context, builder, array).data
        return builder.gep(data, [index])

    first_weight = pointer(4, weights, w)
    next_weight = builder.gep(
        first_weight,
        [builder.add(builder.mul(depth, _INT64(PANEL_WIDTH)), builder.extract_value(ahead, 0))],
    )
    tile = _Tile(
        builder,
        depth=depth,
        inputs=(pointer(1, inputs, i), input_stride),
        weights=first_weight,
        ahead=(next_weight, builder.extract_value(ahead, 1)),
        initial=(pointer(8, initial, s), initial_stride),
        output=(pointer(11, output, o), output_stride),
    )
    end = builder.append_basic_block("tile.end")
    cases = [builder.append_basic_block(f"tile.{rows}") for rows in range(1, MAX_TILE_ROWS + 1)]
    switch = builder.switch(num_rows, end)
    for rows, block in enumerate(cases, start=1):
        switch.add_case(_INT64(rows), block)
        builder.position_at_end(block)
        tile.emit(rows)
        builder.branch(end)
    builder.position_at_end(end)
    return context.get_dummy_value()


class _Tile:
    """Emits the code of tiles with a known number of rows. Pairs are a pointer and a stride."""

    def __init__(
        self,
        builder: Any,
        *,
        depth: Any,
        inputs: tuple[Any, Any],
        weights: Any,
        ahead: tuple[Any, Any],
        initial: tuple[Any, Any],
        output: tuple[Any, Any],
    ) -> None:
        self._builder = builder
        self._depth = depth
        self._inputs, self._weights, self._ahead = inputs, weights, ahead
        self._initial, self._output = initial, output
        self._fma = cgutils.get_or_insert_function(
            builder.module, ir.FunctionType(_FLOATS, [_FLOATS] * 3), f"llvm.fma.v{LANES}f32"
        )
        self._prefetch = cgutils.get_or_insert_function(
            builder.module,
            ir.FunctionType(ir.VoidType(), [_BYTES, _INT32, _INT32, _INT32]),
            "llvm.prefetch.p0i8",
        )

    def emit(self, num_rows: int) -> None:
        """Emits the sums of so many rows, and what writes them."""
        builder = self._builder
        places = [(row, vector) for row in range(num_rows) for vector in range(PANEL_VECTORS)]
        rows = [self._row(self._inputs, row) for row in range(num_rows)]
        initial = [builder.load(self._at(self._initial, *p), align=_FLOAT_BYTES) for p in places]
        for place in places:
            self._fetch(builder.bitcast(self._at(self._output, *place), _BYTES), to_write=True)
        before, loop = builder.block, builder.append_basic_block("depth")
        builder.branch(loop)
        builder.position_at_end(loop)
        d = builder.phi(_INT64)
        sums = [builder.phi(_FLOATS) for _ in places]
        weights = [self._weight(d, vector) for vector in range(PANEL_VECTORS)]
        self._fetch_ahead(d)
        numbers = [self._splat(builder.load(builder.gep(row, [d]))) for row in rows]
        products = [
            builder.call(self._fma, [numbers[row], weights[vector], total])
            for (row, vector), total in zip(places, sums, strict=True)
        ]
        following = self._opaque(builder.add(d, _INT64(1)))
        for phi, first, later in zip(
            [d, *sums], [_INT64(0), *initial], [following, *products], strict=True
        ):
            phi.add_incoming(first, before)
            phi.add_incoming(later, loop)
        after = builder.append_basic_block("depth.end")
        builder.cbranch(builder.icmp_signed("<", following, self._depth), loop, after)
        builder.position_at_end(after)
        for place, product in zip(places, products, strict=True):
            builder.store(product, self._at(self._output, *place), align=_FLOAT_BYTES)

    def _row(self, matrix: tuple[Any, Any], row: int) -> Any:
        pointer, stride = matrix
        return self._builder.gep(pointer, [self._builder.mul(stride, _INT64(row))])

    def _at(self, matrix: tuple[Any, Any], row: int, vector: int) -> Any:
        start = self._builder.gep(self._row(matrix, row), [_INT64(vector * LANES)])
        return self._builder.bitcast(start, _FLOATS.as_pointer())

    def _weight(self, d: Any, vector: int) -> Any:
        builder = self._builder
        index = builder.add(builder.mul(d, _INT64(PANEL_WIDTH)), _INT64(vector * LANES))
        pointer = builder.bitcast(builder.gep(self._weights, [index]), _FLOATS.as_pointer())
        return builder.load(pointer, align=_FLOAT_BYTES)

    def _fetch_ahead(self, d: Any) -> None:
        builder = self._builder
        pointer, stride = self._ahead
        start = builder.bitcast(builder.gep(pointer, [builder.mul(d, stride)]), _BYTES)
        for vector in range(PANEL_VECTORS):
            self._fetch(builder.gep(start, [_INT64(vector * LANES * _FLOAT_BYTES)]))

    def _fetch(self, pointer: Any, *, to_write: bool = False) -> None:
        into_first_cache, data = _INT32(3), _INT32(1)
        self._builder.call(self._prefetch, [pointer, _INT32(to_write), into_first_cache, data])

    def _splat(self, number: Any) -> Any:
        undefined = ir.Constant(_FLOATS, ir.Undefined)
        first = self._builder.insert_element(undefined, number, _INT32(0))
        return self._builder.shuffle_vector(first, undefined, _FIRST)

    def _opaque(self, number: Any) -> Any:
        """Hides how a number comes about: a loop that LLVM cannot count is not unrolled.

        Unrolled, it would need more registers than there are.
        """
        same = ir.FunctionType(_INT64, [_INT64])
        return self._builder.asm(same, "", "=r,0", [number], side_effect=False)
