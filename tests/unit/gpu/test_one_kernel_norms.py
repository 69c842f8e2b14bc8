"""Norms are swapped where they are root mean square norms, and say what they said before."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

from furiosa_llm.modeling.gpu.one_kernel_norms import OneKernelNorm, swap_norms
from furiosa_llm.modeling.loader import load_model
from tests.unit.gpu.plain_layer_kernels import PlainLayerKernels

TOKEN_IDS = torch.arange(10, 40)[None]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(
    ("name", "num_swapped"),
    [
        *(("Llama", 5), ("Qwen3", 9), ("Gemma2", 9), ("Gemma3Text", 13), ("GptOss", 5)),
        *(("Olmo2", 9), ("DeepseekV3", 9), ("GPTNeoX", 0), ("GPT2", 0)),
    ],
)
def test_a_model_says_the_same_with_swapped_norms(
    name: str, num_swapped: int, dtype: torch.dtype, checkpoint: Callable[[str], Path]
) -> None:
    model = load_model(str(checkpoint(name)), dtype=dtype).model
    model.set_attn_implementation("eager")
    for parameter in model.parameters():
        if parameter.ndim == 1:  # weights that are all ones would not tell where they belong
            nn.init.normal_(parameter, mean=0.5)
    names = [parameter for parameter, _ in model.named_parameters()]

    with torch.inference_mode():
        expected = model(TOKEN_IDS, use_cache=False).logits
        assert swap_norms(model, PlainLayerKernels()) == num_swapped
        actual = model(TOKEN_IDS, use_cache=False).logits

    assert torch.equal(actual, expected)  # rounded at the same places
    assert [parameter for parameter, _ in model.named_parameters()] == names


class RMSNorm(nn.Module):
    """One that a test makes odd."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.linspace(0.5, 2.0, 8))
        self.variance_epsilon = 1e-5

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return inputs * (inputs.square().mean(-1, keepdim=True) + 1e-5).rsqrt() * self.weight


class OtherEpsilon(RMSNorm):
    variance_epsilon: float

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return inputs * (inputs.square().mean(-1, keepdim=True) + 1e-8).rsqrt() * self.weight


class L2Norm(RMSNorm):
    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return inputs * (inputs.square().sum(-1, keepdim=True) + 1e-5).rsqrt() * self.weight


class GatedRMSNorm(RMSNorm):
    def forward(self, inputs: torch.Tensor, gate: torch.Tensor | None = None) -> torch.Tensor:
        return super().forward(inputs if gate is None else inputs * gate)


class TwoInputsRMSNorm(RMSNorm):
    def forward(self, inputs: torch.Tensor, other: torch.Tensor) -> torch.Tensor:  # type: ignore[override]
        return super().forward(inputs + other)


OtherEpsilon.__name__ = "OtherEpsilonRMSNorm"


@pytest.mark.parametrize(
    ("kind", "is_swapped"),
    [(RMSNorm, True), (OtherEpsilon, False), (L2Norm, False), (TwoInputsRMSNorm, False)],
)
def test_a_norm_that_computes_something_else_is_left_alone(
    kind: type[nn.Module], is_swapped: bool
) -> None:
    model = nn.Sequential(kind())

    assert swap_norms(model, PlainLayerKernels()) == is_swapped
    assert isinstance(model[0], OneKernelNorm) == is_swapped


@torch.inference_mode()
def test_what_the_kernel_does_not_serve_is_done_as_before() -> None:
    plain, inputs, gate = GatedRMSNorm(), torch.randn(2, 3, 8), torch.randn(2, 3, 8)
    model = nn.Sequential(plain)

    assert swap_norms(model, PlainLayerKernels()) == 1

    assert torch.equal(model[0](inputs, gate), plain(inputs, gate))
    assert torch.equal(model[0](inputs, gate=gate), plain(inputs, gate))
    assert torch.equal(model[0](inputs.double()), plain(inputs.double()))


class _Broken(PlainLayerKernels):
    def normalize(self, *_: object, **__: object) -> torch.Tensor | None:
        raise RuntimeError("does not compile")


def test_norms_stay_where_the_kernel_cannot_be_compiled() -> None:
    model = nn.Sequential(RMSNorm())

    assert swap_norms(model, _Broken()) == 0
    assert type(model[0]) is RMSNorm
