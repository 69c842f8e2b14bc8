"""A model is taken to a GPU, of which a CPU takes the place, and answers there."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from furiosa_llm.config import EngineArgs
from furiosa_llm.engine_core import EngineCore
from furiosa_llm.errors import ConfigError
from furiosa_llm.execution.gpu_device import GpuDevice
from furiosa_llm.execution.prepared_model import PreparedModel, prepare_on_gpu
from furiosa_llm.execution.step_queue import queue_for
from furiosa_llm.execution.token_caches import block_bytes
from furiosa_llm.modeling.gpu.layer_kernels import LayerKernels
from furiosa_llm.modeling.loader import load_model
from furiosa_llm.sampling_params import SamplingParams
from furiosa_llm.tokenization import Tokenizer
from tests.unit.gpu.gpu_path import GpuPath, Recording, answer_all
from tests.unit.gpu.plain_layer_kernels import PlainLayerKernels

GREEDY = SamplingParams(temperature=0, max_tokens=12, ignore_eos=True)
PROMPTS = [[5, 6, 7], list(range(30, 60)), [9]]
MIB = 2**20


class FakeMemory:
    """Ten MiB, of which the largest step takes two and other programs one."""

    def total(self) -> int:
        return 10 * MIB

    def free(self) -> int:
        return 9 * MIB

    def allocated(self) -> int:
        return 0

    def forget_peak(self) -> None:
        return

    def peak(self) -> int:
        return 2 * MIB


def prepare(
    path: Path, recording: Recording, layer_kernels: LayerKernels | None = None, **options: Any
) -> PreparedModel:
    args = EngineArgs(model=str(path), max_num_seqs=4, max_num_batched_tokens=64, **options)
    gpu = GpuDevice(
        device=torch.device("cpu"),
        memory=FakeMemory(),
        recorder=recording,
        kernels=(),
        layer_kernels=layer_kernels,
    )
    loaded = load_model(str(path), dtype=torch.float32)
    return prepare_on_gpu(args, loaded, gpu, is_alone=True)


def answer(model: PreparedModel) -> list[list[int]]:
    core = EngineCore(
        executor=queue_for(
            model.make_runner(),
            model.limits.scheduler_config.npu_queue_limit,
            device_type="cuda",  # as there, though a CPU runs it
        ),
        tokenizer=Tokenizer.from_engine_args(model.args),
        limits=model.limits,
    )
    return answer_all(core, PROMPTS, GREEDY)


@pytest.mark.parametrize("name", ["Llama", "Qwen2", "Qwen3", "GPTNeo", "Whisper", "Phi3"])
def test_a_prepared_model_fills_the_memory_and_answers_with_graphs(
    name: str, checkpoint: Callable[[str], Path]
) -> None:
    path, recording = checkpoint(name), Recording()

    model = prepare(path, recording)

    shapes = [layer.shape for layer in model.loaded.layers]
    size = block_bytes(shapes, block_size=32, dtype=torch.float32)
    num_fitting = 6 * MIB // size - 1  # of 9 MiB, nine tenths of all
    assert model.limits.cache_config.num_blocks == min(num_fitting, 4 * 512 // 32)
    assert model.limits.scheduler_config.npu_queue_limit == 2
    assert answer(model) == GpuPath.of(path).answer(PROMPTS, GREEDY)
    assert recording.num_replayed > 0


@pytest.mark.parametrize("quantization", [None, "int8"])
def test_kernels_between_products_are_used(
    quantization: str | None, checkpoint: Callable[[str], Path]
) -> None:
    path, kernels = checkpoint("Qwen3"), PlainLayerKernels()

    model = prepare(path, Recording(), kernels, quantization=quantization)
    kernels.calls.clear()

    assert answer(model) == answer(prepare(path, Recording(), quantization=quantization))
    assert kernels.calls.keys() == {"normalize", "gate", "rotate", "store"}


def test_blocks_that_do_not_fit_are_refused(checkpoint: Callable[[str], Path]) -> None:
    with pytest.raises(ConfigError, match=r"\(100000\) needs .* blocks fit$"):
        prepare(checkpoint("Llama"), Recording(), paged_attention_num_blocks=100_000)


@pytest.mark.parametrize("quantization", ["int8", "int4"])
def test_a_quantised_model_is_prepared_as_well(
    quantization: str, checkpoint: Callable[[str], Path]
) -> None:
    model = prepare(checkpoint("Llama"), Recording(), quantization=quantization)

    assert [len(tokens) for tokens in answer(model)] == [12, 12, 12]
