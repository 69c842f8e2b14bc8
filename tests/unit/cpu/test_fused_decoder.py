"""Layers in one call against their own parts, one after the other."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from furiosa_llm.modeling import paged_attention
from furiosa_llm.modeling.cpu.attention import CpuAttention
from furiosa_llm.modeling.cpu.core_threads import CoreThreads
from furiosa_llm.modeling.cpu.decoder_memory import SharedMemory
from furiosa_llm.modeling.cpu.fused_decoder import ComputedBefore, FusedDecoder, fused_decoders
from furiosa_llm.modeling.cpu.fusion import use_threads
from furiosa_llm.modeling.cpu.fusion_trial import Call
from furiosa_llm.modeling.cpu.layer_cache import LayerCache
from furiosa_llm.modeling.loader import LoadedModel, load_model
from furiosa_llm.modeling.paged_attention import CurrentStep
from furiosa_llm.modeling.step_layout import StepLayout

BLOCK_SIZE = 16


def load(path: Path, *, quantization: str | None = None, num_threads: int = 1) -> LoadedModel:
    loaded = load_model(str(path), dtype=torch.float32)
    loaded = loaded.fused(quantization=quantization, deterministic=False)
    use_threads(loaded.model, CoreThreads(num_threads))
    return loaded


def bind(loaded: LoadedModel, num_tokens: int, kept: list[int] | None = None) -> None:
    """Lets the model run a step of one request, whose keys and values nobody has written yet."""
    num_blocks = -(-num_tokens // BLOCK_SIZE)
    caches = [
        LayerCache.allocate(
            layer.shape, num_blocks=num_blocks, block_size=BLOCK_SIZE, dtype=loaded.cache_dtype
        )
        for layer in loaded.layers
    ]
    tokens = range(num_tokens) if kept is None else kept
    layout = StepLayout(
        slot_mapping=torch.arange(num_tokens),
        query_start_loc=torch.tensor([0, num_tokens], dtype=torch.int32),
        seq_lens=torch.tensor([num_tokens], dtype=torch.int32),
        block_tables=torch.arange(num_blocks, dtype=torch.int32)[None],
        tasks=torch.tensor([[0, token, token + 1] for token in range(num_tokens)]).int(),
        kept=None if kept is None else torch.tensor(kept, dtype=torch.int64),
        kept_tasks=torch.tensor([[0, token, token + 1] for token in tokens]).int().reshape(-1, 3),
    )
    backend = CpuAttention(CoreThreads(1))
    paged_attention.bind(loaded.layers, caches, CurrentStep(layout), backend)


def inputs_of(model: Any, num_tokens: int) -> tuple[torch.Tensor, tuple[torch.Tensor, ...]]:
    generator = torch.Generator().manual_seed(num_tokens)
    hidden = torch.randn(1, num_tokens, model.config.hidden_size, generator=generator)
    positions = torch.arange(num_tokens)[None]
    rotation: tuple[torch.Tensor, torch.Tensor] = model.model.rotary_emb(hidden, positions)
    return hidden, rotation


def by_parts(decoder: FusedDecoder, hidden: torch.Tensor, rotation: object) -> torch.Tensor:
    for layer in decoder.layers:
        parts = dict(layer.named_children())
        hidden = hidden + parts["self_attn"](parts["input_layernorm"](hidden), rotation)[0]
        hidden = hidden + parts["mlp"](parts["post_attention_layernorm"](hidden))
    return hidden


@torch.inference_mode()
@pytest.mark.parametrize("name", ["Llama", "Qwen2", "Qwen3", "Mistral"])
@pytest.mark.parametrize(("quantization", "tolerance"), [(None, 1e-5), ("int8", 2e-2)])
@pytest.mark.parametrize("num_threads", [1, 2, 3])
def test_layers_in_one_call_compute_what_their_parts_do(
    name: str,
    quantization: str | None,
    tolerance: float,
    num_threads: int,
    checkpoint: Callable[[str], Path],
) -> None:
    loaded = load(checkpoint(name), quantization=quantization, num_threads=num_threads)
    decoder, *others = loaded.model.model.layers
    assert isinstance(decoder, FusedDecoder)
    assert others
    assert all(isinstance(layer, ComputedBefore) for layer in others)
    assert len(decoder.layers) == len(loaded.layers)
    assert loaded.cache_dtype == (torch.bfloat16 if quantization else torch.float32)

    for num_tokens in (1, 2, 40, 203, 7):  # memory that grew for one step serves smaller ones
        hidden, rotation = inputs_of(loaded.model, num_tokens)
        bind(loaded, num_tokens)
        expected = by_parts(decoder, hidden, rotation)
        before = hidden.clone()
        actual = decoder(hidden, position_embeddings=rotation)

        assert torch.equal(hidden, before)
        assert (actual - expected).norm() <= tolerance * expected.norm()


@torch.inference_mode()
@pytest.mark.parametrize("quantization", [None, "int8"])
@pytest.mark.parametrize("num_threads", [1, 2])
@pytest.mark.parametrize(
    ("num_tokens", "kept"),
    [
        *((9, kept) for kept in ([], [3], [0, 4, 5], list(range(9)))),
        *((203, kept) for kept in ([], [1, 101, 202], list(range(3, 200)))),
    ],
)
def test_the_last_layer_computes_tokens_that_are_asked_for_to_the_bit(
    quantization: str | None,
    num_tokens: int,
    kept: list[int],
    num_threads: int,
    checkpoint: Callable[[str], Path],
) -> None:
    loaded = load(checkpoint("Llama"), quantization=quantization, num_threads=num_threads)
    last = loaded.model.model.layers[0]
    first = FusedDecoder(last.layers, SharedMemory(), is_last=False)
    first.threads = last.threads
    hidden, rotation = inputs_of(loaded.model, num_tokens)
    bind(loaded, num_tokens)
    whole = last(hidden, position_embeddings=rotation)

    bind(loaded, num_tokens, kept)

    assert torch.equal(first(hidden, position_embeddings=rotation), whole)
    assert torch.equal(last(hidden, position_embeddings=rotation)[:, kept], whole[:, kept])


def test_layers_that_are_rotated_in_different_ways_are_computed_apart(
    checkpoint: Callable[[str], Path],
) -> None:
    decoder = load(checkpoint("Llama")).model.model.layers[0]
    decoder.layers.extend([*decoder.layers])  # the same parts twice will do
    layers = [
        FusedDecoder([layer], SharedMemory(), is_last=False).layers[0] for layer in decoder.layers
    ]
    decoder.layers = torch.nn.ModuleList(layers)
    rotations = [(), (), (1,), (1,)]
    calls = {
        layer: Call((), {"position_embeddings": rotation}, None)
        for layer, rotation in zip(layers, rotations, strict=True)
    }

    replacements = fused_decoders(decoder, calls)

    assert [type(replacements[layer]) for layer in layers] == [FusedDecoder, ComputedBefore] * 2
