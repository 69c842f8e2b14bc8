"""Packed and 8-bit linear layers against torch's own."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from transformers.pytorch_utils import Conv1D

from furiosa_llm.modeling.cpu.core_threads import CoreThreads
from furiosa_llm.modeling.cpu.int8_tile import LARGEST_INPUT
from furiosa_llm.modeling.cpu.packed_linear import Int8Linear, PackedLinear, can_pack


def make_linear(num_inputs: int, num_outputs: int, *, bias: bool = False) -> nn.Linear:
    torch.manual_seed(num_inputs * num_outputs)
    return nn.Linear(num_inputs, num_outputs, bias=bias)


@torch.inference_mode()
@pytest.mark.parametrize("num_rows", [0, 1, 2, 40])
@pytest.mark.parametrize("bias", [False, True])
def test_layers_packed_into_one_give_what_each_gives(num_rows: int, bias: bool) -> None:
    layers = [make_linear(24, 40, bias=bias), make_linear(24, 7), make_linear(24, 9, bias=bias)]
    inputs = torch.randn(1, num_rows, 24)

    packed = PackedLinear.of(*layers)(inputs)

    torch.testing.assert_close(packed, torch.cat([layer(inputs) for layer in layers], dim=-1))


@torch.inference_mode()
def test_a_layer_whose_weight_lies_the_other_way_is_packed_too() -> None:
    layer = Conv1D(40, 24)
    inputs = torch.randn(3, 24)

    torch.testing.assert_close(PackedLinear.of(layer)(inputs), layer(inputs))
    assert relative_error(Int8Linear.of(layer)(inputs), layer(inputs)) < 0.02


def test_only_plain_layers_in_float32_are_packed() -> None:
    class Scaled(nn.Linear):
        """A layer that does more than its base class."""

    assert can_pack(make_linear(8, 8))
    assert not can_pack(Scaled(8, 8))
    assert not can_pack(make_linear(8, 8).bfloat16())
    assert not can_pack(nn.Embedding(8, 8))


@torch.inference_mode()
@settings(max_examples=60)
@given(
    sizes=st.tuples(st.integers(1, 700), st.integers(1, 200)),
    first=st.integers(0, 150),
    num_rows=st.integers(1, 150),
    is_int8=st.booleans(),
    num_threads=st.sampled_from([1, 2]),
)
def test_a_row_is_the_same_to_the_bit_in_any_batch(
    sizes: tuple[int, int], first: int, num_rows: int, is_int8: bool, num_threads: int
) -> None:
    layer = make_linear(*sizes)
    inputs = torch.randn(300, sizes[0], generator=torch.Generator().manual_seed(0))
    packed = (Int8Linear if is_int8 else PackedLinear).of(layer)

    whole = packed(inputs)[first : first + num_rows]
    threads_before = torch.get_num_threads()
    torch.set_num_threads(num_threads)
    packed.threads = CoreThreads(num_threads)
    try:
        alone = packed(inputs[first : first + num_rows].clone())
    finally:
        torch.set_num_threads(threads_before)

    assert torch.equal(alone, whole)


@torch.inference_mode()
@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e6])
def test_eight_bits_are_near_the_exact_product_whatever_its_size(scale: float) -> None:
    layer = make_linear(256, 64, bias=True)
    inputs = torch.randn(1, 20, 256) * scale * torch.logspace(-2, 2, 20)[:, None]
    exact = layer(inputs)

    rounded = Int8Linear.of(layer)(inputs)

    for row in range(20):
        assert relative_error(rounded[0, row], exact[0, row]) < 0.02


@torch.inference_mode()
def test_no_rows_give_no_rows() -> None:
    assert Int8Linear.of(make_linear(16, 8))(torch.empty(1, 0, 16)).shape == (1, 0, 8)


@torch.inference_mode()
def test_rows_and_weights_of_zeros_give_zeros() -> None:
    layer = make_linear(16, 8)
    layer.weight[3] = 0
    inputs = torch.randn(4, 16)
    inputs[1] = 0

    output = Int8Linear.of(layer)(inputs)

    assert output.isfinite().all()
    assert not output[1].any()
    assert not output[:, 3].any()


@torch.inference_mode()
@pytest.mark.parametrize("number", [float("nan"), float("inf"), float("-inf")])
def test_what_is_not_finite_does_not_become_a_number(number: float) -> None:
    inputs = torch.randn(4, 37)
    inputs[2, 5] = number

    output = Int8Linear.of(make_linear(37, 8))(inputs)

    assert not output[2].isfinite().any()
    assert output[[0, 1, 3]].isfinite().all()


@torch.inference_mode()
@pytest.mark.parametrize("is_joined", [False, True])
def test_a_packed_layer_can_be_rounded_later(is_joined: bool) -> None:
    layers = [make_linear(23, 37, bias=True), *([make_linear(23, 5)] * is_joined)]
    inputs = torch.randn(4, 23)

    rounded = Int8Linear.of_packed(PackedLinear.of(*layers))

    assert torch.equal(rounded(inputs), Int8Linear.of(*layers)(inputs))


@torch.inference_mode()
@settings(max_examples=60)
@given(num_inputs=st.integers(1, 300), num_outputs=st.integers(1, 60), num_rows=st.integers(1, 20))
def test_products_of_whole_numbers_are_exact(
    num_inputs: int, num_outputs: int, num_rows: int
) -> None:
    generator = torch.Generator().manual_seed(num_inputs)
    # So that the scale of each output is 1, and that no sum in 16 bits is at its end.
    weight = torch.randint(-42, 43, (num_outputs, num_inputs), generator=generator)
    weight[:, 0] = 127
    numbers = torch.randint(-LARGEST_INPUT, LARGEST_INPUT + 1, (num_rows, num_inputs))
    numbers[:, 0] = LARGEST_INPUT
    layer = nn.Linear(num_inputs, num_outputs, bias=False)
    layer.weight.copy_(weight)

    product = Int8Linear.of(layer)(numbers.float())

    expected = (numbers @ weight.t()).float()
    torch.testing.assert_close(product, expected, rtol=1e-6, atol=0)


@torch.inference_mode()
@settings(max_examples=60, deadline=None)
@given(
    signs=st.lists(st.sampled_from([-1, 1]), min_size=8, max_size=8),
    num_groups=st.integers(1, 40),
)
def test_the_largest_sums_do_not_overflow(signs: list[int], num_groups: int) -> None:
    weight = torch.tensor(signs * num_groups, dtype=torch.float32)
    layer = nn.Linear(len(weight), 16, bias=False)
    layer.weight.copy_(weight)
    inputs = torch.stack([torch.ones_like(weight), -torch.ones_like(weight), weight, -weight])

    product = Int8Linear.of(layer)(inputs)

    expected = (inputs @ weight)[:, None].expand(-1, 16)
    torch.testing.assert_close(product, expected, rtol=0.01, atol=0.01 * len(weight))


def relative_error(actual: torch.Tensor, expected: torch.Tensor) -> float:
    """The length of the difference over that of what is expected."""
    return float((actual - expected).norm() / expected.norm())
