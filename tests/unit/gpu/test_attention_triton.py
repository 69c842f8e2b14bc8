"""The Triton kernel, run by Triton's interpreter on a CPU, against plain torch in float64."""

from __future__ import annotations

import platform
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

pytest.importorskip("triton")  # torch's builds for CPUs come without it

from furiosa_llm.execution.decode_graphs import DecodeShape
from furiosa_llm.modeling.attention_params import AttentionParams
from furiosa_llm.modeling.gpu.attention_triton import (
    TritonAttention,
    num_parts_for,
)
from furiosa_llm.sampling_params import SamplingParams
from tests.fresh_process import run_code
from tests.unit.gpu.gpu_path import GpuPath
from tests.unit.gpu.test_gpu_attention import (
    CHUNKS,
    DECODES,
    MIXED,
    VARIANTS,
    make_problem,
)
from tests.unit.gpu.triton_interpreter import skip_without_interpreter


@pytest.fixture(scope="module", autouse=True)
def _interpreter() -> None:
    skip_without_interpreter()


@pytest.mark.parametrize("block_size", [16, 128])
@pytest.mark.parametrize(("heads", "sizes", "params"), VARIANTS)
@pytest.mark.parametrize("spans", [DECODES, CHUNKS, MIXED], ids=["decodes", "chunks", "mixed"])
def test_the_kernel_agrees_with_float64(
    spans: list[tuple[int, int]],
    heads: tuple[int, int],
    sizes: tuple[int, int],
    params: AttentionParams,
    block_size: int,
) -> None:
    problem = make_problem(spans, heads=heads, sizes=sizes, params=params, block_size=block_size)
    expected = problem.exact()
    problem.cache.store(problem.layout.slot_mapping, problem.key, problem.value)

    kernel = TritonAttention()
    output = kernel(problem.query, problem.cache, problem.layout, problem.params)

    assert kernel.serves(problem.query, problem.cache, problem.params)
    torch.testing.assert_close(output.double(), expected, rtol=2e-5, atol=2e-6)


@pytest.mark.parametrize(("heads", "sizes", "params"), VARIANTS)
def test_long_requests_are_divided_among_programs(
    heads: tuple[int, int], sizes: tuple[int, int], params: AttentionParams
) -> None:
    spans = [(700, 701), (3, 4), (1023, 1024)]  # parts without keys, and of all keys
    problem = make_problem(spans, heads=heads, sizes=sizes, params=params)
    expected = problem.exact()
    problem.cache.store(problem.layout.slot_mapping, problem.key, problem.value)

    output = TritonAttention()(problem.query, problem.cache, problem.layout, problem.params)

    torch.testing.assert_close(output.double(), expected, rtol=2e-5, atol=2e-6)


@pytest.mark.parametrize(
    ("num_programs", "span", "num_parts"),
    [
        (2048, 4096, 1),
        (300, 4096, 1),
        (100, 4096, 4),
        (64, 4096, 8),
        (8, 600, 2),
        (8, 511, 1),
        (1, 10**6, 64),
    ],
)
def test_keys_are_divided_where_programs_are_few_and_keys_are_many(
    num_programs: int, span: int, num_parts: int
) -> None:
    assert num_parts_for(num_programs, span) == num_parts


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_the_kernel_serves_half_precision(dtype: torch.dtype) -> None:
    problem = make_problem(MIXED, dtype=dtype)

    output = problem.attend([TritonAttention()])

    torch.testing.assert_close(output, problem.exact().to(dtype), rtol=3e-2, atol=3e-3)


def test_what_others_left_in_a_block_does_not_reach_the_kernel() -> None:
    problem = make_problem([(3, 4), (20, 30)])
    expected = problem.exact()
    for index, seq_len in enumerate(problem.layout.seq_lens.tolist()):
        last = problem.layout.block_tables[index, (seq_len - 1) // 16]
        problem.cache.keys[last, (seq_len - 1) % 16 + 1 :] = float("nan")
        problem.cache.values[last, (seq_len - 1) % 16 + 1 :] = float("nan")
    problem.cache.store(problem.layout.slot_mapping, problem.key, problem.value)

    output = TritonAttention()(problem.query, problem.cache, problem.layout, problem.params)

    torch.testing.assert_close(output.double(), expected, rtol=2e-5, atol=2e-6)


def test_the_kernels_fit_registers_and_shared_memory_of_a_hopper_gpu() -> None:
    if not sys.platform.startswith("linux") or platform.machine() != "x86_64":
        pytest.skip("NVIDIA's tools come with Triton for Linux on x86-64 alone")
    code = "import tests.unit.gpu.compiled_kernels as kernels; kernels.main()"

    done = run_code(f"import os; os.environ['TRITON_INTERPRET'] = '0'; {code}")

    found = [line.split("\t") for line in done.stdout.splitlines()]
    assert len(found) == 18 + 24 + 2  # attention, what lies between products, rounding
    for case, shared_bytes, stack_bytes in found:
        assert int(shared_bytes) <= 113 * 1024, f"{case}: two programs do not fit"
        assert int(stack_bytes) <= 32, f"{case}: registers are spilled"


def test_a_model_says_the_same_with_the_kernel(checkpoint: Callable[[str], Path]) -> None:
    path, prompts = checkpoint("GptOss"), [[5, 6, 7], list(range(30, 60))]
    params = SamplingParams(temperature=0, max_tokens=4, ignore_eos=True)

    plain = GpuPath.of(path).answer(prompts, params)
    interpreted = GpuPath.of(path, kernels=[TritonAttention()], shapes=[DecodeShape(4, 64)])

    assert interpreted.answer(prompts, params) == plain
