"""What a GPU can do at most: the rates that results are stated as shares of."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

_COPY_BYTES = 4 << 30
_MATRIX_SIZE = 8192
_NUM_RUNS = 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """The best rates that were measured.

    Attributes:
        copy_bytes_per_second: Of a copy within the device's memory; each byte counts twice, since
            it is read and written.
        matrix_flops_per_second: Of a product of square bfloat16 matrices.
    """

    copy_bytes_per_second: float
    matrix_flops_per_second: float


def measure_limits(
    device: torch.device, *, copy_bytes: int = _COPY_BYTES, matrix_size: int = _MATRIX_SIZE
) -> Limits:
    """Measures the best of many runs."""
    copy_seconds = best_seconds(_copy(copy_bytes, device), device)
    matrix_seconds = best_seconds(_product(matrix_size, device), device)
    return Limits(
        copy_bytes_per_second=2 * copy_bytes / copy_seconds,
        matrix_flops_per_second=2 * matrix_size**3 / matrix_seconds,
    )


def _copy(num_bytes: int, device: torch.device) -> Callable[[], object]:
    source = torch.ones(num_bytes, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    return lambda: target.copy_(source)


def _product(size: int, device: torch.device) -> Callable[[], object]:
    left = torch.randn(size, size, dtype=torch.bfloat16, device=device)
    right = torch.randn_like(left)
    return lambda: left @ right


def best_seconds(work: Callable[[], object], device: torch.device) -> float:
    """Returns the shortest time that work took, once it had been done before."""
    work()
    best = float("inf")
    for _ in range(_NUM_RUNS):
        finish(device)
        start = time.perf_counter()
        work()
        finish(device)
        best = min(best, time.perf_counter() - start)
    return best


def finish(device: torch.device) -> None:
    """Waits until a GPU has done what it was told."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
