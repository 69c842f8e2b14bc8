"""The innermost part of a matrix product, which a compiler would not keep in registers by itself.

A tile is a few rows of the result times the width of a panel of weights (Goto and van de Geijn,
Anatomy of high-performance matrix multiplication, 2008). Its sums stay in registers until they are
complete, while weights stream past; those of the next panel are asked for ahead of time. An
element of the result is summed in the same order whatever tile it lies in.

`float_tile` and `int8_tile` have tiles of numbers of either kind.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

from llvmlite import ir
from numba.extending import register_jitable

from furiosa_llm.modeling.cpu import processor
from furiosa_llm.modeling.cpu.simd import LANES, fetch

HAS_32_WIDE_REGISTERS = processor.has("avx512f")  # else 16 of half
READS_AHEAD = processor.reads_ahead()

PANEL_VECTORS = 2 if HAS_32_WIDE_REGISTERS else 1
PANEL_WIDTH = PANEL_VECTORS * LANES
MAX_TILE_ROWS = 14 if HAS_32_WIDE_REGISTERS else 6

_INT32, _INT64 = ir.IntType(32), ir.IntType(64)
_FLOATS = ir.VectorType(ir.FloatType(), LANES)
_FLOAT_BYTES = 4


@register_jitable
def place_ahead(tile: int, num_tiles: int, depth: int, width: int) -> tuple[int, int]:
    """Returns what a tile of rows fetches of the panel that follows the one it reads.

    The tiles share it out. A single one only waits for memory: it asks for what it reads, and so
    for nothing, where that is fastest.

    Args:
        tile: Its place among those of the panel.
        num_tiles: How many they are.
        depth: Rows of weights in a panel.
        width: Elements of such a row.

    Returns:
        How far ahead it begins, and how many elements of it come with each row of weights.
    """
    if READS_AHEAD and num_tiles == 1:
        return 0, width
    share = -(-width // num_tiles)
    return depth * (width + tile * share), share


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
    """Emits the code of tiles with a known number of rows. Pairs are a pointer and a stride.

    Nothing is fetched ahead of time where `ahead` is None.
    """

    def __init__(
        self,
        builder: Any,
        *,
        num_vectors: int,
        depth: Any,
        ahead: tuple[Any, Any] | None,
        output: tuple[Any, Any],
    ) -> None:
        self._builder = builder
        self._num_vectors, self._depth = num_vectors, depth
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
        if self._ahead is not None:
            pointer, stride = self._ahead
            self._fetch_ahead(builder.gep(pointer, [builder.mul(d, stride)]))
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

    def _at(self, matrix: tuple[Any, Any], row: int, vector: int, kind: Any = _FLOATS) -> Any:
        """Returns the pointer to a vector of a kind, of those that a row of floats consists of."""
        start = self._builder.gep(self._row(matrix, row), [_INT64(vector * kind.count)])
        return self._builder.bitcast(start, kind.as_pointer())

    def _load(self, matrix: tuple[Any, Any], row: int, vector: int, kind: Any) -> Any:
        return self._builder.load(self._at(matrix, row, vector, kind), align=_FLOAT_BYTES)

    def _store(self, result: Any, row: int, vector: int) -> None:
        place = self._at(self._output, row, vector, result.type)
        self._builder.store(result, place, align=_FLOAT_BYTES)

    def _fetch_output(self, places: Iterable[tuple[int, int]]) -> None:
        for place in places:
            fetch(self._builder, self._at(self._output, *place), to_write=True)

    def _fetch_ahead(self, start: Any) -> None:
        for vector in range(self._num_vectors):
            fetch(self._builder, self._builder.gep(start, [_INT64(vector * LANES)]))

    def _splat(self, number: Any, kind: Any) -> Any:
        undefined = ir.Constant(kind, ir.Undefined)
        first = self._builder.insert_element(undefined, number, _INT32(0))
        everywhere = ir.Constant(ir.VectorType(_INT32, kind.count), [_INT32(0)] * kind.count)
        return self._builder.shuffle_vector(first, undefined, everywhere)

    def _opaque(self, number: Any) -> Any:
        """Hides how a number comes about: a loop that LLVM cannot count is not unrolled.

        Unrolled, it would need more registers than there are.
        """
        same = ir.FunctionType(_INT64, [_INT64])
        return self._builder.asm(same, "", "=r,0", [number], side_effect=False)
