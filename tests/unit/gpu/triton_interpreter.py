"""Whether Triton's interpreter can run kernels here."""

from __future__ import annotations

import pytest
import torch
import triton
import triton.language as tl


@triton.jit
def _count(stop, result):  # type: ignore[no-untyped-def]
    for index in range(tl.load(stop)):
        tl.store(result, index)


def skip_without_interpreter() -> None:
    """Skips where the interpreter of this Triton does not get along with this NumPy."""
    try:
        _count[(1,)](torch.tensor([2]), torch.zeros(1))
    except Exception as error:  # noqa: BLE001 - whatever it is, it is not about our kernels
        pytest.skip(f"Triton's interpreter fails: {error}")
