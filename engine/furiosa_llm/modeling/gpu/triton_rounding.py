"""Rows of activations rounded to 8-bit floats in one pass, by a Triton kernel of ours.

Plain torch takes seven kernels, some of which write float32. Written and tested on a CPU, in
Triton's interpreter; not yet measured on a GPU.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from triton.errors import TritonError

_BLOCK = 1024  # numbers of a row that a program holds at once


@triton.jit
def round_rows(
    rows,  # [R, I]
    rounded,  # [R, I] float8_e4m3fn
    scales,  # [R]
    num_columns,
    largest,
    smallest_scale,
    block: tl.constexpr,
):
    """Grid: rows. A row's scale brings its largest number to `largest`."""
    row = tl.program_id(0).to(tl.int64) * num_columns
    columns = tl.arange(0, block)
    found = tl.zeros([block], tl.float32)
    for start in range(0, num_columns, block):
        is_there = start + columns < num_columns
        numbers = tl.load(rows + row + start + columns, is_there, 0.0).to(tl.float32)
        found = tl.maximum(found, tl.abs(numbers))
    scale = tl.maximum(tl.max(found, 0) / largest, smallest_scale)
    tl.store(scales + tl.program_id(0), scale)
    for start in range(0, num_columns, block):
        is_there = start + columns < num_columns
        numbers = tl.load(rows + row + start + columns, is_there, 0.0).to(tl.float32) / scale
        # To the nearest multiple of their last bit, since not all conversions round: three bits
        # after the first one, down to 2**-6. Adding 1.5 * 2**23 of that bit cuts what is smaller.
        exponents = tl.maximum((numbers.to(tl.int32, bitcast=True) >> 23) & 0xFF, 121)
        shifts = (((exponents + 20) << 23) | 0x400000).to(tl.float32, bitcast=True)
        numbers = (numbers + shifts) - shifts
        tl.store(rounded + row + start + columns, numbers.to(tl.float8e4nv), is_there)


def round_to_fp8(
    rows: torch.Tensor, *, largest: float, smallest_scale: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns rows of float8_e4m3fn and their scales.

    Args:
        rows: [R, I] of any float type.
        largest: What the largest number of each row becomes.
        smallest_scale: For rows of zeros.

    Returns:
        [R, I] float8_e4m3fn and [R, 1] float32; they are about equal to `rows` when multiplied.

    Raises:
        RuntimeError: The kernel cannot be compiled for this device.
    """
    rows = rows.contiguous()
    num_rows, num_columns = rows.shape
    rounded = torch.empty_like(rows, dtype=torch.float8_e4m3fn)
    scales = rows.new_empty(num_rows, 1, dtype=torch.float32)
    try:
        round_rows[(num_rows,)](
            rows, rounded, scales, num_columns, largest, smallest_scale, block=_BLOCK
        )
    except TritonError as error:
        raise RuntimeError(f"Triton: {error}") from error
    return rounded, scales
