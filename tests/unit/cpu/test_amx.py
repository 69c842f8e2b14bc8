"""Products in tiles against exact ones, and against those of the processors that have no tiles."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from furiosa_llm.modeling.cpu.amx import HAS_AMX, padded_bytes
from furiosa_llm.modeling.cpu.core_threads import CoreThreads
from furiosa_llm.modeling.cpu.int8_amx import multiply_int8_tiles
from furiosa_llm.modeling.cpu.int8_matmul import multiply_int8
from furiosa_llm.modeling.cpu.int8_rounding import round_weights
from furiosa_llm.modeling.cpu.matmul_kernel import FloatWeights, multiply_floats, pack
from furiosa_llm.modeling.cpu.packed_linear import Int8Linear, PackedLinear
from furiosa_llm.modeling.cpu.products import num_panels, rows_for, rows_of
from furiosa_llm.modeling.cpu.simd import Floats
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
        multiply_split(rows_of(inputs.numpy(), weights, CoreThreads(1)), weights, output, panels)
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
def test_products_of_pieces_are_off_by_roundings_alone(
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

    output = product(inputs, weights, num_outputs, in_tiles=True)

    # Sums of K terms in any order are off by K / 2 roundings of a float32 at most, and so is each
    # term by one.
    assert (np.abs(output - exact) <= (num_inputs / 2 + 2) * 2.0**-23 * terms).all()


@needs_tiles
@pytest.mark.parametrize("num_inputs", [64, 576, 2048])
def test_pieces_are_nearer_to_the_exact_product_than_floats(num_inputs: int) -> None:
    inputs, weight = floats(64, num_inputs), floats(96, num_inputs, seed=1)
    weights = pack(weight, None)
    exact = (inputs.double() @ weight.t().double()).numpy()

    in_tiles, by_floats = (
        float(np.square(product(inputs, weights, 96, in_tiles=in_tiles) - exact).mean()) ** 0.5
        for in_tiles in (True, False)
    )

    assert in_tiles <= by_floats


@needs_tiles
@settings(max_examples=300)
@given(bits=st.tuples(*[st.integers(0x3F000000, 0x3FFFFFFF)] * 2))
def test_a_product_of_two_numbers_is_off_by_few_roundings(bits: tuple[int, int]) -> None:
    one, other = np.array(bits, np.uint32).view(np.float32)
    weights = pack(torch.from_numpy(np.array([[other]])), None)

    output = product(torch.from_numpy(np.array([[one]])), weights, 1, in_tiles=True)

    exact = float(one) * float(other)
    # 2**-24 of what the six products leave out, and a rounding of each of five sums.
    assert abs(float(output[0, 0]) - exact) <= 3 * 2.0**-23 * exact


@needs_tiles
@pytest.mark.parametrize("is_int8", [False, True])
@pytest.mark.parametrize("num_inputs", [1100, 3000])
def test_rows_that_stay_in_no_cache_are_multiplied_in_blocks(
    num_inputs: int, is_int8: bool
) -> None:
    num_rows = 1500 if is_int8 else 300
    inputs, weight = floats(num_rows, num_inputs), floats(70, num_inputs, seed=1)
    layer = torch.nn.Linear(num_inputs, 70, bias=False)
    with torch.inference_mode():
        layer.weight.copy_(weight)
        packed = (Int8Linear if is_int8 else PackedLinear).of(layer)

        whole = packed(inputs)
        alone = torch.cat([packed(inputs[start : start + 7]) for start in range(0, num_rows, 7)])

        assert torch.equal(whole, alone)
        limit = 3e-2 if is_int8 else 1e-6
        assert (whole - layer(inputs)).norm() <= limit * layer(inputs).norm()


@needs_tiles
@settings(max_examples=40, deadline=None)
@given(num_rows=st.integers(1, 120), num_inputs=st.integers(1, 300), num_outputs=st.integers(1, 90))
def test_eight_bits_in_tiles_are_the_same_to_the_bit(
    num_rows: int, num_inputs: int, num_outputs: int
) -> None:
    inputs = floats(num_rows, num_inputs)
    weights = round_weights(pack(floats(num_outputs, num_inputs, seed=1), None))
    rows = rows_of(inputs.numpy(), weights, CoreThreads(1))
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

    assert np.isnan(output[5]).all()
    others = np.arange(40) != 5
    assert np.array_equal(output[others], expected[others])


@needs_tiles
def test_numbers_of_almost_any_size_are_whole() -> None:
    """Of smaller ones, pieces are denormal, and tiles take these for 0."""
    inputs = torch.logspace(-32, 38, 71)[:, None]
    weights = pack(torch.ones(1, 1), None)

    output = product(inputs, weights, 1, in_tiles=True)

    np.testing.assert_array_equal(output, inputs.numpy())


@pytest.mark.parametrize("num_bytes", [1, 64, 65, 4096, 24576])
def test_rows_of_a_tile_lie_in_different_places_of_a_cache(num_bytes: int) -> None:
    stride = padded_bytes(num_bytes)

    assert stride >= num_bytes
    assert len({row * stride // 64 % 64 for row in range(16)}) == 16


@needs_tiles
@pytest.mark.parametrize("num_tokens", [1, 31, 32, 33])
@pytest.mark.parametrize("is_int8", [False, True])
def test_there_is_memory_behind_the_rows(num_tokens: int, is_int8: bool) -> None:
    weights = pack(floats(8, 100), None)

    rows = rows_for(round_weights(weights) if is_int8 else weights, num_tokens, 100)

    array = rows[0] if isinstance(rows, tuple) else rows
    assert len(array) == num_tokens
    assert array.base is not None
    behind = array.ctypes.data - array.base.ctypes.data
    assert array.base.nbytes - behind >= -(-num_tokens // 32) * 32 * array.strides[0]
