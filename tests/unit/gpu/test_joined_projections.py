"""Models whose queries, keys and values are one product say what they said before."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from torch import nn

from furiosa_llm.modeling.gpu.int4_linear import Int4WeightLinear
from furiosa_llm.modeling.gpu.joined_projections import (
    JoinedProjection,
    ProjectionPart,
    join_projections,
)
from furiosa_llm.modeling.gpu.quantized_linear import Fp8Linear, Int8WeightLinear, quantize_linears
from furiosa_llm.modeling.layer_shape import LayerShape
from furiosa_llm.modeling.loader import LoadedModel, load_model
from furiosa_llm.modeling.paged_attention import AttentionLayer

TOKEN_IDS = torch.arange(10, 40)[None]


def load(path: Path, dtype: torch.dtype = torch.float32) -> LoadedModel:
    loaded = load_model(str(path), dtype=dtype)
    loaded.model.set_attn_implementation("eager")
    return loaded


@torch.inference_mode()
def logits_of(loaded: LoadedModel) -> torch.Tensor:
    logits: torch.Tensor = loaded.model(TOKEN_IDS, use_cache=False).logits
    return logits


def join(loaded: LoadedModel) -> int:
    return join_projections(loaded.layers, lambda: logits_of(loaded))


def joined_in(model: nn.Module) -> list[JoinedProjection]:
    return [module for module in model.modules() if isinstance(module, JoinedProjection)]


@contextmanager
def counted_products(model: nn.Module) -> Iterator[list[str]]:
    """Notes the names of linear layers as they are called."""
    called: list[str] = []
    handles = [
        module.register_forward_hook(lambda *_, name=name: called.append(name))
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear)
    ]
    yield called
    for handle in handles:
        handle.remove()


@pytest.mark.parametrize(
    ("name", "num_joined"),
    [
        *(("Llama", 2), ("Qwen2", 2), ("Qwen3", 2), ("Gemma2", 2), ("GptOss", 2)),
        *(("Phi3", 0), ("GPT2", 0), ("DeepseekV3", 0)),
    ],
)
def test_a_model_says_the_same_with_joined_projections(
    name: str, num_joined: int, checkpoint: Callable[[str], Path]
) -> None:
    loaded = load(checkpoint(name))
    num_parameters = sum(parameter.numel() for parameter in loaded.model.parameters())
    expected = logits_of(loaded)

    assert join(loaded) == num_joined

    torch.testing.assert_close(logits_of(loaded), expected)
    assert sum(parameter.numel() for parameter in loaded.model.parameters()) == num_parameters
    assert all(joined.is_idle for joined in joined_in(loaded.model))


def test_queries_keys_and_values_are_computed_once(checkpoint: Callable[[str], Path]) -> None:
    loaded = load(checkpoint("Llama"))
    join(loaded)

    with counted_products(loaded.model) as called:
        logits_of(loaded)

    assert [name.rpartition("layers.")[2] for name in called if "self_attn" in name] == [
        f"{layer}.self_attn.{name}"
        for layer in (0, 1)
        for name in ("q_proj.joined.linear", "o_proj")
    ]


def make_linears(
    *, num_inputs: int = 16, biases: tuple[bool, ...] = (True, False, True)
) -> list[nn.Linear]:
    torch.manual_seed(0)
    return [
        nn.Linear(num_inputs, num_outputs, bias=bias)
        for num_outputs, bias in zip((16, 8, 4), biases, strict=True)
    ]


@torch.inference_mode()
@pytest.mark.parametrize("biases", [(True, False, True), (False, False, False)])
def test_layers_of_other_sizes_and_without_biases_are_joined_as_well(
    biases: tuple[bool, ...],
) -> None:
    linears = make_linears(biases=biases)
    inputs = torch.randn(2, 5, 16)

    joined = JoinedProjection(linears)

    for index in (2, 0, 1):  # in any order
        torch.testing.assert_close(joined.part(index, inputs), linears[index](inputs))
    assert joined.is_idle


@torch.inference_mode()
def test_no_part_is_taken_for_that_of_another_input() -> None:
    linears = make_linears()
    joined = JoinedProjection(linears)
    one, same_numbers, other = torch.ones(3, 16), torch.ones(3, 16), torch.randn(3, 16)

    for index, inputs in ((0, one), (1, other), (1, other), (2, same_numbers), (2, one), (0, one)):
        torch.testing.assert_close(joined.part(index, inputs), linears[index](inputs))


@torch.inference_mode()
def test_nothing_is_kept_once_the_last_part_is_taken() -> None:
    joined = JoinedProjection(make_linears())
    inputs = torch.randn(3, 16)
    kept = [weakref.ref(inputs), *(weakref.ref(joined.part(index, inputs)) for index in range(3))]
    del inputs

    assert [reference() for reference in kept] == [None] * 4


def test_weights_are_given_back_layer_by_layer(checkpoint: Callable[[str], Path]) -> None:
    loaded = load(checkpoint("Llama"))
    first, second = (layer.module for layer in loaded.layers)
    weights = [weakref.ref(module.get_submodule("q_proj").weight) for module in (first, second)]
    alive_before_second: list[bool] = []
    second.register_forward_pre_hook(
        lambda *_: alive_before_second.append(weights[0]() is not None)
    )

    join(loaded)

    assert alive_before_second == [False]
    assert weights[1]() is None


class Attention(nn.Module):
    """Of one head, as a test wants it."""

    def __init__(self) -> None:
        super().__init__()
        self.q_proj, self.k_proj, self.v_proj = (nn.Linear(8, 8) for _ in range(3))

    def forward(self, hidden: torch.Tensor) -> tuple[torch.Tensor, None]:
        return self.q_proj(hidden) * self.k_proj(hidden) + self.v_proj(hidden), None


class CrossAttention(Attention):
    def forward(self, hidden: torch.Tensor) -> tuple[torch.Tensor, None]:
        return self.q_proj(hidden) * self.k_proj(hidden + 1) + self.v_proj(hidden + 1), None


class SharedKeys(Attention):
    def forward(self, hidden: torch.Tensor) -> tuple[torch.Tensor, None]:
        return self.q_proj(hidden), None


class FlatView(Attention):
    def forward(self, hidden: torch.Tensor) -> tuple[torch.Tensor, None]:
        flat = self.q_proj(hidden).view(-1) * self.k_proj(hidden).view(-1)
        return flat.view_as(hidden) + self.v_proj(hidden), None


class ReadsWeights(Attention):
    def forward(self, hidden: torch.Tensor) -> tuple[torch.Tensor, None]:
        return super().forward(hidden.to(self.q_proj.weight.dtype))


@pytest.mark.parametrize(
    ("kind", "is_joined"),
    [
        *((Attention, True), (CrossAttention, False), (SharedKeys, False)),
        *((FlatView, False), (ReadsWeights, False)),
    ],
)
def test_a_module_that_does_not_fit_is_left_alone(kind: type[Attention], is_joined: bool) -> None:
    module = kind()
    shape = LayerShape(num_kv_heads=1, key_size=8, value_size=8)
    hidden = torch.randn(1, 5, 8)

    with torch.inference_mode():
        expected, _ = module(hidden)
        num_joined = join_projections([AttentionLayer(module, 1, shape)], lambda: module(hidden))
        actual, _ = module(hidden)

    assert num_joined == is_joined
    assert isinstance(module.k_proj, ProjectionPart if is_joined else nn.Linear)
    torch.testing.assert_close(actual, expected)


@pytest.mark.parametrize(
    ("quantization", "kind"),
    [("fp8", Fp8Linear), ("int8", Int8WeightLinear), ("int4", Int4WeightLinear)],
)
def test_joined_projections_can_be_quantised(
    quantization: str, kind: type[nn.Module], checkpoint: Callable[[str], Path]
) -> None:
    loaded = load(checkpoint("Qwen2"), torch.bfloat16)
    expected = logits_of(loaded).float().log_softmax(-1)
    join(loaded)

    assert quantize_linears(loaded.model, quantization) == 2 * 5

    assert all(isinstance(joined.linear, kind) for joined in joined_in(loaded.model))
    actual = logits_of(loaded).float().log_softmax(-1)
    assert 0 < (expected.exp() * (expected - actual)).sum(-1).mean() < 0.2
