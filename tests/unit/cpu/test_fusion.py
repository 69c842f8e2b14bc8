"""Modules are replaced where they agree; a model that would say something else is left alone."""

from __future__ import annotations

import gc
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

from furiosa_llm.errors import ModelLoadError
from furiosa_llm.modeling.cpu import fusion
from furiosa_llm.modeling.cpu.fused_attention import FusedAttention
from furiosa_llm.modeling.cpu.fused_decoder import FusedDecoder
from furiosa_llm.modeling.cpu.fused_modules import FusedGatedMlp, FusedRmsNorm
from furiosa_llm.modeling.cpu.packed_linear import Int8Linear, PackedLinear
from furiosa_llm.modeling.loader import LoadedModel, load_model


def load(path: Path) -> LoadedModel:
    return load_model(str(path), dtype=torch.float32)


def kinds_in(model: nn.Module) -> set[type]:
    kinds = {*ALL, FusedDecoder, Int8Linear}
    return {type(module) for module in model.modules()} & kinds


ALL = {FusedAttention, FusedGatedMlp, FusedRmsNorm, PackedLinear}
WHOLE = {*ALL, FusedDecoder}


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("Llama", WHOLE),
        ("Qwen2", WHOLE),  # biases
        ("Qwen3", WHOLE),  # norms over heads
        ("Mistral", WHOLE),
        ("Gemma3Text", ALL),  # norms that add one, and another activation
        ("Olmo2", ALL - {FusedAttention}),  # norms over all heads together
        ("Phi3", {FusedRmsNorm, PackedLinear}),  # one projection already
        ("GPT2", {PackedLinear}),
        ("Qwen3Moe", ALL - {FusedGatedMlp}),
    ],
)
def test_what_looks_right_and_agrees_is_replaced(
    name: str, expected: set[type], checkpoint: Callable[[str], Path]
) -> None:
    loaded = load(checkpoint(name)).fused(quantization=None, deterministic=False)

    assert kinds_in(loaded.model) == expected
    modules = set(loaded.model.modules())
    assert all(layer.module in modules for layer in loaded.layers)


def test_a_layer_that_computes_something_else_is_kept(checkpoint: Callable[[str], Path]) -> None:
    loaded = load(checkpoint("Llama"))
    odd = loaded.model.model.layers[1]
    odd.mlp.forward = lambda hidden: odd.mlp.down_proj(odd.mlp.up_proj(hidden))
    odd.input_layernorm.forward = lambda hidden: hidden * 2
    projected = odd.self_attn.k_proj
    projected.register_forward_hook(lambda *arguments: -arguments[-1])

    fused = loaded.fused(quantization=None, deterministic=False).model.model.layers

    assert isinstance(fused[0].self_attn, FusedAttention)
    assert isinstance(fused[0].mlp, FusedGatedMlp)
    assert not isinstance(fused[1].self_attn, FusedAttention)
    assert not isinstance(fused[1].mlp, FusedGatedMlp)
    assert not isinstance(fused[1].input_layernorm, FusedRmsNorm)


def test_a_model_that_looks_into_its_layers_is_left_as_it_was(
    checkpoint: Callable[[str], Path],
) -> None:
    loaded = load(checkpoint("Phi3"))
    attention = loaded.model.model.layers[0].self_attn
    run = attention.forward

    def forward(*arguments: object, **keywords: object) -> object:
        assert attention.o_proj.weight.dtype == torch.float32
        return run(*arguments, **keywords)

    attention.forward = forward
    modules = list(loaded.model.modules())

    fused = loaded.fused(quantization=None, deterministic=False)

    assert list(fused.model.modules()) == modules
    assert fused.layers == loaded.layers


def test_every_linear_layer_of_a_quantized_model_has_eight_bits(
    checkpoint: Callable[[str], Path],
) -> None:
    loaded = load(checkpoint("Llama")).fused(quantization="int8", deterministic=False)

    assert kinds_in(loaded.model) == WHOLE - {PackedLinear} | {Int8Linear}
    assert not any(isinstance(module, nn.Linear) for module in loaded.model.modules())


def test_a_model_without_linear_layers_cannot_be_quantized() -> None:
    with pytest.raises(ModelLoadError, match="no linear layer that can be computed with 8 bits"):
        fusion.quantize(nn.Embedding(4, 4))


def test_a_model_with_experts_is_not_called_deterministic(
    checkpoint: Callable[[str], Path],
) -> None:
    with pytest.raises(
        ModelLoadError, match=r"Qwen3MoeForCausalLM is not deterministic: .*Experts"
    ):
        load(checkpoint("Qwen3Moe")).fused(quantization=None, deterministic=True)


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="tells what is mapped")
@pytest.mark.parametrize("quantization", [None, "int8"])
def test_the_file_of_weights_that_are_packed_is_not_mapped_any_more(
    quantization: str | None, checkpoint: Callable[[str], Path]
) -> None:
    path = checkpoint("Llama")
    loaded = load(path)
    assert str(path) in Path("/proc/self/maps").read_text()

    gc.disable()  # it would also free what waits in a cycle
    try:
        loaded = loaded.fused(quantization=quantization, deterministic=False)

        assert str(path) not in Path("/proc/self/maps").read_text()
    finally:
        gc.enable()
    assert loaded.model.get_input_embeddings().weight.isfinite().all()
