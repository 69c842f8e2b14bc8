from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

pytest.importorskip("triton")

from furiosa_llm.modeling.gpu import quantized_linear
from furiosa_llm.modeling.gpu.triton_rounding import round_to_fp8

LARGEST = torch.finfo(torch.float8_e4m3fn).max


def round_both(rows: torch.Tensor) -> tuple[tuple[torch.Tensor, ...], tuple[torch.Tensor, ...]]:
    ours = round_to_fp8(rows, largest=LARGEST, smallest_scale=1e-12)
    return ours, quantized_linear.round_to_fp8(rows)


@given(
    num_rows=st.integers(1, 5),
    num_columns=st.integers(1, 40) | st.sampled_from([1023, 1024, 1025, 2100]),
    dtype=st.sampled_from([torch.bfloat16, torch.float16, torch.float32]),
    exponent=st.integers(-8, 8),
    seed=st.integers(0, 2**16),
)
def test_the_kernel_rounds_as_torch_does(
    num_rows: int, num_columns: int, dtype: torch.dtype, exponent: int, seed: int
) -> None:
    draws = torch.Generator().manual_seed(seed)
    rows = torch.randn(num_rows, num_columns, generator=draws) ** 3 * 2.0**exponent

    (rounded, scales), (expected, expected_scales) = round_both(rows.to(dtype))

    assert torch.equal(scales, expected_scales)
    assert torch.equal(rounded.float(), expected.float())


def test_every_number_of_8_bits_and_all_between_them_are_rounded_to_the_nearest() -> None:
    numbers = torch.arange(0, 0x7F, dtype=torch.uint8).view(torch.float8_e4m3fn).float()
    halves = (numbers[1:] + numbers[:-1]) / 2
    near = torch.cat([halves * (1 - 1e-6), halves, halves * (1 + 1e-6)])
    row = torch.cat([numbers, near, -numbers, -near])[None]

    (rounded, scales), (expected, _) = round_both(row)

    assert scales.item() == 1
    assert torch.equal(rounded.float(), expected.float())


def test_a_row_of_zeros_stays_one() -> None:
    rounded, scales = round_to_fp8(torch.zeros(2, 3), largest=LARGEST, smallest_scale=1e-12)

    assert not rounded.float().any()
    assert scales.flatten().tolist() == pytest.approx([1e-12, 1e-12])


def test_rows_that_lie_apart_are_rounded_alike() -> None:
    rows = torch.randn(6, 64).t()

    (rounded, scales), (expected, expected_scales) = round_both(rows)

    assert torch.equal(scales, expected_scales)
    assert torch.equal(rounded.float(), expected.float())
