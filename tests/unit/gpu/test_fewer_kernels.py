"""Models in which what lies between products is one kernel each answer as they did before."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from unittest.mock import Mock

import pytest
import torch

from furiosa_llm.execution.decode_graphs import DecodeShape
from furiosa_llm.modeling.gpu import available_kernels
from furiosa_llm.modeling.loader import load_model
from furiosa_llm.sampling_params import SamplingParams
from tests.unit.gpu.gpu_path import GpuPath, Recording
from tests.unit.gpu.kernel_counts import kernels_of_a_decode
from tests.unit.gpu.plain_layer_kernels import PlainLayerKernels

PROMPTS = [[5, 6, 7], list(range(30, 60)), [9]]
GREEDY = SamplingParams(temperature=0, max_tokens=8, ignore_eos=True)
ALL = {"normalize", "gate", "rotate", "store"}


@pytest.mark.parametrize(
    ("name", "used"),
    [
        *((name, ALL) for name in ("Llama", "Qwen2", "Qwen3", "Gemma2", "Gemma3Text", "Phi3")),
        *(("Olmo2", ALL), ("GptOss", ALL - {"gate"}), ("Qwen3Moe", ALL - {"gate"})),
        *(("GPTNeoX", {"rotate", "store"}), ("GPT2", {"store"})),
    ],
)
def test_models_answer_the_same_with_fewer_kernels(
    name: str, used: set[str], checkpoint: Callable[[str], Path]
) -> None:
    path, kernels, recording = checkpoint(name), PlainLayerKernels(), Recording()

    fewer = GpuPath.of(
        path, layer_kernels=kernels, shapes=[DecodeShape(4, 64)], recording=recording
    )
    kernels.calls.clear()

    assert fewer.answer(PROMPTS, GREEDY) == GpuPath.of(path).answer(PROMPTS, GREEDY)
    assert set(kernels.calls) == used
    assert recording.num_replayed > 0


@pytest.mark.filterwarnings("ignore:overflow encountered in exp")
@pytest.mark.parametrize(
    ("name", "used"),
    [
        *((name, ALL) for name in ("Llama", "Qwen2", "Qwen3", "Gemma3Text", "Phi3")),
        ("GPTNeoX", {"rotate", "store"}),
    ],
)
def test_models_answer_the_same_with_the_kernels_of_triton(
    name: str, used: set[str], checkpoint: Callable[[str], Path]
) -> None:
    pytest.importorskip("triton")
    from tests.unit.gpu.triton_interpreter import skip_without_interpreter

    skip_without_interpreter()
    path, prompts = checkpoint(name), [[5, 6, 7], [9]]
    params = SamplingParams(temperature=0, max_tokens=3, ignore_eos=True)
    kernels = Mock(wraps=available_kernels.layer_kernels())

    fewer = GpuPath.of(path, layer_kernels=kernels, shapes=[DecodeShape(2, 64)])
    kernels.reset_mock()

    assert fewer.answer(prompts, params) == GpuPath.of(path).answer(prompts, params)
    assert {called[0] for called in kernels.method_calls} == used


@pytest.mark.parametrize(
    ("name", "before", "after"), [("Llama", 37, 12), ("Qwen3", 53, 14), ("Gemma3Text", 81, 16)]
)
def test_a_layer_starts_fewer_kernels(
    name: str, before: int, after: int, checkpoint: Callable[[str], Path]
) -> None:
    def per_layer(*, is_fewer: bool) -> int:
        one, two = (load_model(str(checkpoint(name)), dtype=torch.bfloat16) for _ in range(2))
        one.model.get_submodule("model").layers = one.model.get_submodule("model").layers[:1]
        one = dataclasses.replace(one, layers=one.layers[:1])
        counts = [kernels_of_a_decode(loaded, is_fewer=is_fewer) for loaded in (one, two)]
        return counts[1] - counts[0]

    assert (per_layer(is_fewer=False), per_layer(is_fewer=True)) == (before, after)
