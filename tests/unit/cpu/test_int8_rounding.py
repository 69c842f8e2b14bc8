from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from furiosa_llm.modeling.cpu.int8_matmul import Int8Weights
from furiosa_llm.modeling.cpu.int8_rounding import round_weights
from furiosa_llm.modeling.cpu.int8_tile import (
    GROUP,
    LARGEST_WEIGHT,
    MOST_OF_A_SUM,
    STEP,
    ZERO_POINT,
)
from furiosa_llm.modeling.cpu.matmul_kernel import pack
from furiosa_llm.modeling.cpu.matmul_tile import PANEL_WIDTH


def numbers_of(weights: Int8Weights, num_outputs: int) -> torch.Tensor:
    """[O, I] with what the inputs are filled up with, as torch reads them."""
    panels = weights.packed.reshape(weights.factors.size // PANEL_WIDTH, -1, PANEL_WIDTH, GROUP)
    numbers = panels.transpose(0, 2, 1, 3).reshape(weights.factors.size, -1)
    return torch.from_numpy(numbers[:num_outputs].astype(np.int32))


def sums_of(numbers: torch.Tensor) -> torch.Tensor:
    """Of each step of inputs, the four numbers that meet in 16 bits: [O, steps, 2, 4]."""
    steps = numbers.reshape(len(numbers), -1, STEP // GROUP, 2, 2)
    return steps.transpose(2, 3).reshape(len(numbers), -1, 2, 4)


@settings(max_examples=80, deadline=None)
@given(
    num_inputs=st.integers(1, 70),
    num_outputs=st.integers(1, 40),
    seed=st.integers(0, 2**20),
    spread=st.sampled_from([0.0, 1.0, 5.0]),
)
def test_weights_are_within_half_a_factor_and_sums_within_their_bits(
    num_inputs: int, num_outputs: int, seed: int, spread: float
) -> None:
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(num_outputs, num_inputs, generator=generator)
    weight *= torch.exp(spread * torch.randn(num_outputs, num_inputs, generator=generator))

    rounded = round_weights(pack(weight, None))

    numbers = numbers_of(rounded, num_outputs)
    factors = torch.from_numpy(rounded.factors[:num_outputs])
    error = (numbers[:, :num_inputs] * factors[:, None] - weight).abs()
    assert (error <= 0.5001 * factors[:, None]).all()
    assert not numbers[:, num_inputs:].any()
    assert (numbers.abs() <= LARGEST_WEIGHT).all()
    smallest = weight.abs().amax(dim=1) / LARGEST_WEIGHT
    if MOST_OF_A_SUM is not None:
        sums = sums_of(numbers)
        signed = torch.maximum(sums.clamp(min=0).sum(-1), -sums.clamp(max=0).sum(-1))
        assert (signed <= MOST_OF_A_SUM).all()
        padded = torch.nn.functional.pad(weight, (0, numbers.shape[1] - num_inputs))
        exact = sums_of(padded)
        largest = torch.maximum(exact.clamp(min=0).sum(-1), -exact.clamp(max=0).sum(-1))
        smallest = torch.maximum(smallest, largest.amax(dim=(1, 2)) / (MOST_OF_A_SUM - 2))
    torch.testing.assert_close(factors, smallest, rtol=1e-6, atol=1e-37)
    initial = torch.from_numpy(rounded.initial[:num_outputs])
    assert torch.equal(initial.long(), -ZERO_POINT * numbers.sum(dim=1))


@pytest.mark.parametrize("number", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("place", [0, 5, 22])
def test_a_weight_that_is_not_finite_makes_its_output_no_number(number: float, place: int) -> None:
    weight = torch.randn(20, 23)
    weight[17, place] = number

    rounded = round_weights(pack(weight, None))

    assert np.flatnonzero(~np.isfinite(rounded.factors)).tolist() == [17]
