"""Products in tiles against exact ones, and against those of the processors that have no tiles."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from furiosa_llm.modeling.cpu.amx import HAS_AMX, padded_bytes
from furiosa_llm.modeling.cpu.int8_amx import multiply_int8_tiles
from furiosa_llm.modeling.cpu.int8_matmul import multiply_int8
from furiosa_llm.modeling.cpu.int8_rounding import round_weights
from furiosa_llm.modeling.cpu.layer_kernels import Floats
from furiosa_llm.modeling.cpu.matmul_kernel import FloatWeights, multiply_floats, pack
from furiosa_llm.modeling.cpu.products import num_panels, rows_for, rows_of
from furiosa_llm.modeling.cpu.split_matmul import multiply_split

needs_tiles = pytest.mark.skipif(not HAS_AMX, reason="needs a processor with AMX")


def floats(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def product(
    inputs: torch.Tensor, weights: FloatWeights, num_outputs: int, *, in_tiles: bool
) -> Floats:
    output = np.full((len(inputs), num_outputs), np.nan, np.float32)
    panels = 0, num_panels(weights)
    if in_tiles:
        multiply_split(rows_of(inputs.numpy(), weights), weights, output, panels)
    else:
        multiply_floats(inputs.numpy(), weights, output, panels)
    return output


@needs_tiles
@settings(max_examples=60, deadline=None)
@given(
    num_rows=st.integers(1, 120),
    num_inputs=st.integers(1, 300),
    num_outputs=st.integers(1, 90),
    spread=st.sampled_from([0.0, 3.0, 10.0]),
)
def test_pieces_are_no_farther_from_the_exact_product_than_floats(
    num_rows: int, num_inputs: int, num_outputs: int, spread: float
) -> None:
    inputs = floats(num_rows, num_inputs) * torch.exp(spread * floats(num_rows, num_inputs, seed=1))
    weight = floats(num_outputs, num_inputs, seed=2)
    weight *= torch.exp(spread * floats(num_outputs, num_inputs, seed=3))
    bias = floats(num_outputs, seed=4)
    weights = pack(weight, bias)
    exact = (inputs.double() @ weight.t().double() + bias).numpy()
    # What rounding of each term, and of sums of them, can amount to.
    terms = (inputs.abs().double() @ weight.abs().t().double() + bias.abs()).numpy()

    in_tiles = product(inputs, weights, num_outputs, in_tiles=True)
    by_floats = product(inputs, weights, num_outputs, in_tiles=False)

    bound = 1e-6 * terms
    assert (np.abs(in_tiles - exact) <= bound).all()
    worst_float = np.abs(by_floats - exact).max()
    assert np.abs(in_tiles - exact).max() <= 2 * worst_float + 2.0**-22 * terms.max()


@needs_tiles
@settings(max_examples=40, deadline=None)
@given(num_rows=st.integers(1, 120), num_inputs=st.integers(1, 300), num_outputs=st.integers(1, 90))
def test_eight_bits_in_tiles_are_the_same_to_the_bit(
    num_rows: int, num_inputs: int, num_outputs: int
) -> None:
    inputs = floats(num_rows, num_inputs)
    weights = round_weights(pack(floats(num_outputs, num_inputs, seed=1), None))
    rows = rows_of(inputs.numpy(), weights)
    in_tiles, without = np.empty((2, num_rows, num_outputs), np.float32)

    multiply_int8_tiles(rows, weights, in_tiles, (0, num_panels(weights)))
    multiply_int8(rows, weights, without, (0, num_panels(weights)))

    assert np.array_equal(in_tiles, without)


@needs_tiles
@pytest.mark.parametrize("number", [float("nan"), float("inf"), float("-inf"), 3.4e38])
def test_a_row_out_of_range_does_not_touch_the_others(number: float) -> None:
    inputs = floats(40, 70)
    weights = pack(floats(33, 70, seed=1), None)
    expected = product(inputs, weights, 33, in_tiles=True)
    inputs[5, 69] = number

    output = product(inputs, weights, 33, in_tiles=True)

    assert not np.isfinite(output[5]).all() or number == 3.4e38
    others = np.arange(40) != 5
    assert np.array_equal(output[others], expected[others])


@needs_tiles
def test_numbers_of_any_size_are_whole() -> None:
    """Also where pieces of them are too small for 16 bits."""
    inputs = torch.logspace(-37, 37, 75)[:, None]
    weights = pack(torch.ones(1, 1), None)

    output = product(inputs, weights, 1, in_tiles=True)

    np.testing.assert_allclose(output, inputs.numpy(), rtol=2.0**-22, atol=1e-38)


@pytest.mark.parametrize("num_bytes", [1, 64, 65, 4096, 24576])
def test_rows_of_a_tile_lie_in_different_places_of_a_cache(num_bytes: int) -> None:
    stride = padded_bytes(num_bytes)

    assert stride >= num_bytes
    assert len({row * stride // 64 % 64 for row in range(16)}) == 16


@pytest.mark.parametrize("num_tokens", [1, 31, 32, 33])
def test_there_is_memory_behind_the_rows(num_tokens: int) -> None:
    weights = round_weights(pack(floats(8, 100), None))
    for rows in (rows_for(weights, num_tokens, 100), rows_for(pack(floats(8, 100), None), 1, 100)):
        array = rows[0] if isinstance(rows, tuple) else rows
        if HAS_AMX:
            assert array.base is not None
            assert array.base.size >= -(-len(array) // 32) * 32 * array.shape[1]
