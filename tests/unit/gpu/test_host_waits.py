"""A step's forward pass never makes the host wait for the device, so that it can be recorded."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from furiosa_llm.execution.block_tables import BlockTables
from furiosa_llm.execution.input_batch import InputBatch
from furiosa_llm.execution.sampler import NO_TOKEN, sample
from furiosa_llm.execution.token_caches import bind_token_caches
from furiosa_llm.modeling.gpu.attention import GpuAttention
from furiosa_llm.modeling.loader import load_model
from furiosa_llm.modeling.paged_attention import CurrentStep
from tests.unit.gpu.gpu_factories import KINDS, make_sampling, make_share, make_step
from tests.unit.gpu.host_waits import HostWaits

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    "name", ["Llama", "Qwen3", "Gemma2", "Gemma3Text", "GPT2", "GptOss", "DeepseekV3", "Qwen3Moe"]
)
def test_a_forward_pass_does_not_wait(name: str, checkpoint: Callable[[str], Path]) -> None:
    loaded = load_model(str(checkpoint(name)), dtype=torch.float32)
    current_step = CurrentStep()
    bind_token_caches(
        loaded.layers,
        current_step,
        num_blocks=8,
        block_size=16,
        dtype=torch.float32,
        device=CPU,
        attention=GpuAttention(()),
    )
    step = make_step(
        make_share(0, (5,), start=3, block_ids=(1,)),
        make_share(1, (6, 7, 8), start=20, block_ids=(2, 3)),
    )
    batch = InputBatch.build(step, BlockTables(), block_size=16, device=CPU)
    current_step.layout = batch.layout

    with torch.inference_mode(), HostWaits() as waits:
        loaded.model(
            input_ids=batch.input_ids[None],
            position_ids=batch.positions[None],
            use_cache=False,
            logits_to_keep=batch.logits_indices,
        )

    assert waits.names == []


def test_choosing_tokens_does_not_wait() -> None:
    inputs = [make_sampling(**kind) for kind in KINDS]
    logits = torch.randn(len(inputs), 50, generator=torch.Generator().manual_seed(0))
    logits[1, 7] = float("nan")
    forbidden = {0: torch.arange(50) < 9}

    with torch.inference_mode(), HostWaits() as waits:
        chosen = sample(logits, inputs, forbidden)

    assert waits.names == []
    assert chosen[0] >= 9
    assert chosen[1] == NO_TOKEN


@pytest.mark.parametrize(
    "waits_for",
    [
        pytest.param(lambda numbers: bool((numbers > 1).all()), id="a branch"),
        pytest.param(lambda numbers: numbers[numbers > 1], id="a mask"),
        pytest.param(lambda numbers: numbers[0].item(), id="a number"),
    ],
)
def test_waits_are_found(waits_for: Callable[[torch.Tensor], object]) -> None:
    with HostWaits() as waits:
        waits_for(torch.arange(3))

    assert waits.names
