"""Kernels as they are compiled for processors that can do less than that of the tests."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from furiosa_llm.modeling.cpu import processor

_TESTS = ("packed_linear", "int8_rounding", "attention_cpu")

AVX2 = ("sse2", "sse4.2", "avx", "avx2", "fma", "f16c", "bmi", "bmi2")
AVX512 = (*AVX2, "avx512f", "avx512bw", "avx512cd", "avx512dq", "avx512vl")


@pytest.mark.parametrize(
    ("features", "differs"),
    [
        pytest.param((), ("avx2",), id="anything"),
        pytest.param(AVX2, ("avx512f",), id="AVX2"),
        pytest.param(AVX512, ("avx512vnni",), id="AVX-512"),
        pytest.param((*AVX512, "avx512vnni"), ("avx512bf16",), id="VNNI"),
        pytest.param((*AVX512, "avx512vnni", "avx512bf16"), ("amx-int8",), id="bfloat16"),
    ],
)
def test_results_hold_there_too(features: tuple[str, ...], differs: tuple[str, ...]) -> None:
    if not processor.has(*features) or not processor.has(*differs):
        pytest.skip("this processor is no better, or not as good")
    folder = Path(__file__).parent
    variables = {
        "NUMBA_CPU_NAME": "generic",
        "NUMBA_CPU_FEATURES": ",".join(f"+{feature}" for feature in features) or "+sse2",
    }

    finished = subprocess.run(
        [
            *(sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-x"),
            *(str(folder / f"test_{name}.py") for name in _TESTS),
            *("-k", "not any_batch and not plain_torch and not runs_beside"),
        ],
        env=os.environ | variables,
        capture_output=True,
        text=True,
        check=False,
    )

    assert finished.returncode == 0, finished.stdout[-3000:]
