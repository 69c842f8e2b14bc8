"""What only a GPU can show. `pytest -m gpu` runs it; nothing else here needs one."""

from __future__ import annotations

import functools
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from furiosa_llm.config import EngineArgs
from furiosa_llm.execution.logprobs import ChosenLogits
from furiosa_llm.execution.sampler import sample
from furiosa_llm.llm_engine import LLMEngine
from furiosa_llm.modeling.attention_params import AttentionParams
from furiosa_llm.modeling.gpu import available_kernels
from furiosa_llm.modeling.gpu.attention import GpuAttention, PagedKernel
from furiosa_llm.modeling.gpu.layer_kernels import (
    GateKind,
    LayerKernels,
)
from furiosa_llm.modeling.gpu.quantized_linear import quantize_linears
from furiosa_llm.modeling.gpu.token_cache import TokenCache
from furiosa_llm.modeling.step_layout import make_layout
from furiosa_llm.sampling_params import SamplingParams
from tests.checkpoints import VOCAB_SIZE
from tests.factories import answer_all
from tests.unit.gpu.gpu_factories import KINDS, make_sampling
from tests.unit.gpu.plain_layer_kernels import PlainLayerKernels

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU"),
]
GATE_KINDS: tuple[GateKind, ...] = ("silu", "gelu", "gelu_tanh")
GPU = torch.device("cuda:0")
GREEDY = SamplingParams(temperature=0, max_tokens=24, ignore_eos=True)
SEEDED = SamplingParams(temperature=0.8, top_p=0.9, max_tokens=24, ignore_eos=True)


def make_prompts() -> list[list[int]]:
    draw = random.Random(0)
    return [
        [draw.randrange(3, VOCAB_SIZE) for _ in range(length)] for length in (1, 7, 33, 70, 129)
    ]


def answers(path: Path, params: SamplingParams, **options: Any) -> list[list[int]]:
    common: dict[str, Any] = {"dtype": "float32", "max_num_batched_tokens": 64, "max_num_seqs": 4}
    engine = LLMEngine.from_engine_args(EngineArgs(model=str(path), **{**common, **options}))
    try:
        outputs = answer_all(engine, make_prompts(), params)
        return [output.outputs[0].token_ids for output in outputs]
    finally:
        engine.shutdown()


@pytest.mark.parametrize("name", ["Llama", "Qwen2", "Qwen3", "Gemma2", "GptOss"])
@pytest.mark.parametrize("params", [GREEDY, SEEDED], ids=["greedy", "seeded"])
def test_a_gpu_says_in_float32_what_a_cpu_says(
    name: str, params: SamplingParams, checkpoint: Callable[[str], Path]
) -> None:
    path = checkpoint(name)

    assert answers(path, params, devices="cuda:0") == answers(path, params, devices="cpu")


@pytest.mark.parametrize("queue_limit", [1, 2, 3])
@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_steps_in_flight_do_not_matter_on_a_gpu(
    kind: dict[str, Any], queue_limit: int, checkpoint: Callable[[str], Path]
) -> None:
    path = checkpoint("Llama")
    params = SamplingParams(max_tokens=24, **kind)
    one = answers(path, params, devices="cuda:0", npu_queue_limit=1)

    several = answers(path, params, devices="cuda:0", npu_queue_limit=queue_limit)

    assert several == one


@pytest.mark.filterwarnings("ignore:Synchronization debug mode")
def test_choosing_tokens_on_a_gpu_waits_for_nothing() -> None:
    logits = torch.randn(len(KINDS), 50, device=GPU)
    inputs = [make_sampling(**kind) for kind in KINDS]
    sample(logits.clone(), inputs)  # what is set up on a first call may wait
    try:
        torch.cuda.set_sync_debug_mode("error")
        chosen = sample(logits, inputs, {0: torch.arange(50) < 9})
        found = ChosenLogits(logits, inputs).look_up(chosen)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    torch.cuda.synchronize()

    assert chosen[0] >= 9
    assert len(found.read([0])) == 1


@pytest.mark.parametrize(
    "kernel", available_kernels.attention_kernels(), ids=lambda kernel: type(kernel).__name__
)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("window", [None, 100])
def test_a_kernel_is_found_to_agree_on_this_gpu(
    kernel: PagedKernel, dtype: torch.dtype, window: int | None
) -> None:
    layout = make_layout([(600, 601), (0, 300), (100, 400)], block_size=256, device=GPU)
    num_blocks = int(layout.block_tables.max()) + 1
    cache = TokenCache(
        keys=torch.randn(num_blocks, 256, 2, 64, dtype=dtype, device=GPU),
        values=torch.randn(num_blocks, 256, 2, 64, dtype=dtype, device=GPU),
    )
    num_tokens = len(layout.slot_mapping)
    query = torch.randn(num_tokens, 8, 64, dtype=dtype, device=GPU)
    new = torch.randn(2, num_tokens, 2, 64, dtype=dtype, device=GPU)
    params = AttentionParams(scaling=0.125, sliding_window=window)

    output = GpuAttention([kernel])(query, new[0], new[1], cache, layout, params)
    expected = GpuAttention([])(query, new[0], new[1], cache, layout, params)

    assert not torch.equal(output, expected)  # else the kernel was not used
    torch.testing.assert_close(output, expected, rtol=2e-2, atol=5e-3)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_kernels_between_products_say_what_plain_torch_says(dtype: torch.dtype) -> None:
    kernels, plain = available_kernels.layer_kernels(), PlainLayerKernels()
    assert kernels is not None
    make = functools.partial(torch.randn, dtype=dtype, device=GPU)
    product, cos, sin = make(1, 5, 48 * 128), make(1, 5, 128), make(1, 5, 128)
    query, key, value = (
        part.view(1, 5, -1, 128).transpose(1, 2)
        for part in (product[..., :4096], product[..., 4096:5120], product[..., 5120:])
    )

    def results(of: LayerKernels) -> list[torch.Tensor | None]:
        cache = TokenCache(
            keys=torch.zeros(2, 4, 8, 128, dtype=dtype, device=GPU),
            values=torch.zeros(2, 4, 8, 128, dtype=dtype, device=GPU),
        )
        slots = torch.tensor([7, 0, 3, 4, 1], device=GPU)
        assert of.store(cache, slots, key[0].transpose(0, 1), value[0].transpose(0, 1))
        rotated = of.rotate(query, key, cos, sin, halves=False)
        assert rotated is not None
        norms = [
            of.normalize(rows, weight, 1e-6, adds_one=adds_one, rounds_first=not adds_one)
            for rows, weight in ((query, cos[0, 0]), (product, product[0, 0]))
            for adds_one in (False, True)
        ]
        gates = [of.gate(product, kind) for kind in GATE_KINDS]
        return [*norms, *gates, *rotated, cache.keys, cache.values]

    tolerance = {torch.bfloat16: 2e-2, torch.float16: 2e-3, torch.float32: 1e-5}[dtype]
    for actual, expected in zip(results(kernels), results(plain), strict=True):
        torch.testing.assert_close(actual, expected, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("quantization", ["fp8", "int8", "int4"])
def test_rounded_linear_layers_have_kernels(quantization: str) -> None:
    model = torch.nn.Sequential(torch.nn.Linear(512, 256), torch.nn.Linear(256, 512))

    assert quantize_linears(model.to(GPU, torch.bfloat16), quantization) == 2
