"""Prints the float32 matrix rate of this machine in GFLOP/s, as a JSON line.

    python -m benchmarks.matrix_rate

It is what the products of a model of 576 wide layers could reach at most, on all cores.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable

import torch

_NUM_ROWS, _OUTPUT_SIZE, _INPUT_SIZE = 512, 1536, 576
_SECONDS = 2.0


def measure_matrix_rates() -> dict[str, float]:
    """Returns the best rate of each library's product of [512, 576] and [576, 1536]."""
    torch.manual_seed(0)
    weight = torch.randn(_OUTPUT_SIZE, _INPUT_SIZE)
    rows = torch.randn(_NUM_ROWS, _INPUT_SIZE)
    packed = torch.ops.mkldnn._reorder_linear_weight(weight, _NUM_ROWS)
    return {
        "onednn_prepacked": _best_rate(
            lambda: torch.ops.mkldnn._linear_pointwise(rows, packed, None, "none", [], "")
        ),
        "linear": _best_rate(lambda: torch.nn.functional.linear(rows, weight)),
    }


def _best_rate(product: Callable[[], object]) -> float:
    product()
    best, end = float("inf"), time.perf_counter() + _SECONDS
    while (start := time.perf_counter()) < end:
        product()
        best = min(best, time.perf_counter() - start)
    return round(2 * _NUM_ROWS * _OUTPUT_SIZE * _INPUT_SIZE / best / 1e9, 1)


def main() -> None:
    """Measures and prints."""
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    print(json.dumps(measure_matrix_rates()))


if __name__ == "__main__":
    main()
