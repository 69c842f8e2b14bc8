"""Models whose gate and up are one product say what they said before."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn
from transformers.activations import ACT2FN

from furiosa_llm.modeling.gpu.joined_mlp import JoinedMlp, join_mlps
from furiosa_llm.modeling.gpu.layer_kernels import GateKind, gate_kind_of
from furiosa_llm.modeling.gpu.quantized_linear import Fp8Linear, quantize_linears
from furiosa_llm.modeling.loader import load_model
from tests.unit.gpu.plain_layer_kernels import PlainLayerKernels


@pytest.mark.parametrize(
    ("name", "num_joined"), [("Llama", 2), ("Gemma2", 2), ("Phi3", 0), ("GPT2", 0)]
)
def test_a_model_says_the_same_with_joined_mlps(
    name: str, num_joined: int, checkpoint: Callable[[str], Path]
) -> None:
    model = load_model(str(checkpoint(name)), dtype=torch.float32).model
    model.set_attn_implementation("eager")
    token_ids = torch.arange(10, 40)[None]
    num_parameters = sum(parameter.numel() for parameter in model.parameters())

    with torch.inference_mode():
        expected = model(token_ids).logits
        assert join_mlps(model) == num_joined
        actual = model(token_ids).logits

    torch.testing.assert_close(actual, expected)
    assert sum(parameter.numel() for parameter in model.parameters()) == num_parameters


def test_weights_are_given_back_layer_by_layer(checkpoint: Callable[[str], Path]) -> None:
    model = load_model(str(checkpoint("Llama")), dtype=torch.float32).model
    first, second = (model.get_submodule(f"model.layers.{index}.mlp") for index in (0, 1))
    weight = weakref.ref(first.get_submodule("gate_proj").weight)
    alive_before_second: list[bool] = []
    second.register_forward_pre_hook(lambda *_: alive_before_second.append(weight() is not None))
    del first

    join_mlps(model)

    assert alive_before_second == [False]


class _Odd(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.gate_proj, self.up_proj = nn.Linear(8, 8), nn.Linear(8, 8)
        self.down_proj = nn.Linear(8, 8)
        self.act_fn = nn.SiLU()

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        gate: torch.Tensor = self.act_fn(self.gate_proj(inputs))
        output: torch.Tensor = self.down_proj(gate + self.up_proj(inputs))
        return output


def test_a_module_of_the_same_names_that_computes_something_else_is_left_alone() -> None:
    model = nn.Sequential(_Odd())

    assert join_mlps(model) == 0
    assert type(model[0]) is _Odd


def test_joined_layers_can_be_quantised(checkpoint: Callable[[str], Path]) -> None:
    model = load_model(str(checkpoint("Llama")), dtype=torch.bfloat16).model

    join_mlps(model)

    assert quantize_linears(model, "fp8") == 2 * 6
    joined = [module for module in model.modules() if isinstance(module, JoinedMlp)]
    assert all(isinstance(module.get_submodule("gate_up_proj"), Fp8Linear) for module in joined)


@pytest.mark.parametrize(
    ("name", "kind"), [("Llama", "silu"), ("Gemma2", "gelu_tanh"), ("Phi3", "silu")]
)
def test_a_model_says_the_same_where_a_kernel_gates(
    name: str, kind: str, checkpoint: Callable[[str], Path]
) -> None:
    model = load_model(str(checkpoint(name)), dtype=torch.float32).model
    model.set_attn_implementation("eager")
    token_ids, kernels = torch.arange(10, 40)[None], PlainLayerKernels()

    with torch.inference_mode():
        expected = model(token_ids).logits
        assert join_mlps(model, kernels) == 2
        kernels.calls.clear()
        actual = model(token_ids).logits

    torch.testing.assert_close(actual, expected)
    assert kernels.calls["gate"] == 2
    assert gate_kind_of(model.get_submodule("model.layers.0.mlp").activation) == kind


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        *(("silu", "silu"), ("gelu", "gelu"), ("gelu_python", "gelu")),
        *(("gelu_new", "gelu_tanh"), ("gelu_pytorch_tanh", "gelu_tanh")),
        *(("relu", None), ("relu2", None), ("quick_gelu", None), ("tanh", None), ("linear", None)),
    ],
)
def test_activations_are_known_by_what_they_say(name: str, kind: str | None) -> None:
    assert gate_kind_of(ACT2FN[name]) == kind


class _Wrong(PlainLayerKernels):
    def gate(self, product: torch.Tensor, kind: GateKind) -> torch.Tensor | None:
        gated = super().gate(product, kind)
        return None if gated is None else -gated


class _Broken(PlainLayerKernels):
    def gate(self, *_: object) -> torch.Tensor | None:
        raise RuntimeError("does not compile")


@pytest.mark.parametrize("kernels", [_Wrong(), _Broken()])
def test_plain_torch_gates_where_the_kernel_says_something_else(
    kernels: PlainLayerKernels, checkpoint: Callable[[str], Path]
) -> None:
    model = load_model(str(checkpoint("Llama")), dtype=torch.float32).model
    mlp, inputs = model.get_submodule("model.layers.0.mlp"), torch.randn(1, 3, 64)

    assert join_mlps(model, kernels) == 2

    with torch.inference_mode():
        actual = model.get_submodule("model.layers.0.mlp")(inputs)
        torch.testing.assert_close(actual, mlp(inputs))
