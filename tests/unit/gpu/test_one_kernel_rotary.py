"""Attention modules rotate queries and keys in one kernel, where it says what they said."""

from __future__ import annotations

import functools
import gc
import sys
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from furiosa_llm.modeling.gpu.joined_projections import join_projections
from furiosa_llm.modeling.gpu.one_kernel_rotary import swap_rotaries
from furiosa_llm.modeling.layer_shape import LayerShape
from furiosa_llm.modeling.paged_attention import AttentionLayer
from tests.unit.gpu.plain_layer_kernels import PlainLayerKernels
from tests.unit.gpu.test_joined_projections import load, logits_of

SHAPE = LayerShape(num_kv_heads=1, key_size=8, value_size=8)


@pytest.mark.parametrize(
    ("name", "num_swapped"),
    [
        *(("Llama", 2), ("Qwen2", 2), ("Qwen3", 2), ("Gemma2", 2), ("Gemma3Text", 2)),
        *(("Phi3", 2), ("GPTNeoX", 2), ("GptOss", 2), ("Olmo2", 2), ("SmolLM3", 2)),
        *(("GPT2", 0), ("Llama4Text", 0)),
    ],
)
def test_a_model_says_the_same_with_swapped_rotaries(
    name: str, num_swapped: int, checkpoint: Callable[[str], Path]
) -> None:
    loaded, kernels = load(checkpoint(name)), PlainLayerKernels()
    expected = logits_of(loaded)
    classes = [type(layer.module) for layer in loaded.layers]

    assert swap_rotaries(loaded.layers, kernels, lambda: logits_of(loaded)) == num_swapped

    kernels.calls.clear()
    torch.testing.assert_close(logits_of(loaded), expected)
    assert kernels.calls["rotate"] == num_swapped
    assert all(
        isinstance(layer.module, kind) for layer, kind in zip(loaded.layers, classes, strict=True)
    )


def test_projections_are_joined_as_well(checkpoint: Callable[[str], Path]) -> None:
    loaded = load(checkpoint("Qwen3"))
    expected = logits_of(loaded)

    assert join_projections(loaded.layers, lambda: logits_of(loaded)) == 2
    assert swap_rotaries(loaded.layers, PlainLayerKernels(), lambda: logits_of(loaded)) == 2

    torch.testing.assert_close(logits_of(loaded), expected)


def test_other_models_of_the_class_are_not_touched(checkpoint: Callable[[str], Path]) -> None:
    loaded, other, kernels = (
        load(checkpoint("Llama")),
        load(checkpoint("Llama")),
        PlainLayerKernels(),
    )
    plain = sys.modules[type(other.layers[0].module).__module__].apply_rotary_pos_emb
    swap_rotaries(loaded.layers, kernels, lambda: logits_of(loaded))
    kernels.calls.clear()

    logits_of(other)

    assert not kernels.calls
    assert type(other.layers[0].module).forward.__globals__["apply_rotary_pos_emb"] is plain


def test_a_dropped_model_is_freed_at_once(checkpoint: Callable[[str], Path]) -> None:
    loaded = load(checkpoint("Llama"))
    swap_rotaries(loaded.layers, PlainLayerKernels(), functools.partial(logits_of, loaded))
    weight = weakref.ref(loaded.layers[0].module.get_submodule("q_proj").weight)
    gc.collect()
    gc.disable()
    try:
        del loaded
        assert weight() is None
    finally:
        gc.enable()


def rotate_half(heads: torch.Tensor) -> torch.Tensor:
    first, second = heads.chunk(2, -1)
    return torch.cat([-second, first], -1)


def rotate_neighbours(heads: torch.Tensor) -> torch.Tensor:
    return torch.stack([-heads[..., 1::2], heads[..., ::2]], -1).flatten(-2)


def apply_rotary_pos_emb(
    query: torch.Tensor, key: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, how: Any = None
) -> tuple[torch.Tensor, torch.Tensor]:
    turn = how or rotate_half
    query, key = (part * cos[:, None] + turn(part) * sin[:, None] for part in (query, key))
    return query, key


class Attention(nn.Module):
    def forward(self, heads: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> Any:
        return apply_rotary_pos_emb(heads, heads, cos, sin)


class Neighbours(nn.Module):
    def forward(self, heads: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> Any:
        return apply_rotary_pos_emb(heads, heads, cos, sin, rotate_neighbours)


class OtherTypes(Attention):
    def forward(self, heads: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> Any:
        return apply_rotary_pos_emb(heads.bfloat16(), heads.bfloat16(), cos, sin)


class Inherited(Attention):
    pass


class Sometimes(Attention):
    def forward(self, heads: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> Any:
        return apply_rotary_pos_emb(heads, heads, cos, sin) if len(heads) > 1 else (heads, heads)


class OwnForward(Attention):
    def __init__(self) -> None:
        super().__init__()
        self.forward = super().forward  # type: ignore[method-assign]


@torch.inference_mode()
@pytest.mark.parametrize(
    ("kind", "is_swapped"),
    [
        *((Attention, True), (Inherited, True)),
        *((Neighbours, False), (OtherTypes, False), (Sometimes, False), (OwnForward, False)),
    ],
)
def test_a_module_that_does_not_fit_is_left_alone(kind: type[nn.Module], is_swapped: bool) -> None:
    module, kernels = kind(), PlainLayerKernels()
    inputs = (torch.randn(1, 2, 5, 8), *torch.randn(2, 1, 5, 8))
    expected = module(*inputs)

    layers = [AttentionLayer(module, 1, SHAPE)]
    assert swap_rotaries(layers, kernels, lambda: module(*inputs)) == is_swapped

    assert (type(module) is kind) != is_swapped
    torch.testing.assert_close(module(*inputs), expected)


def test_modules_are_given_back_if_the_run_fails() -> None:
    module = Attention()

    def fail() -> None:
        raise ValueError("no memory")

    with pytest.raises(ValueError, match="no memory"):
        swap_rotaries([AttentionLayer(module, 1, SHAPE)], PlainLayerKernels(), fail)

    assert type(module) is Attention


class _Broken(PlainLayerKernels):
    def rotate(self, *_: object, **__: object) -> tuple[torch.Tensor, torch.Tensor] | None:
        raise RuntimeError("does not compile")


def test_modules_stay_where_the_kernel_cannot_be_compiled() -> None:
    module, inputs = Attention(), (torch.randn(1, 2, 5, 8), *torch.randn(2, 1, 5, 8))

    layers = [AttentionLayer(module, 1, SHAPE)]
    assert swap_rotaries(layers, _Broken(), lambda: module(*inputs)) == 0
    assert type(module) is Attention
