"""Linear layers of 8 bits for a GPU, by torch's operations on a CPU."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

from furiosa_llm.config import EngineArgs
from furiosa_llm.errors import ConfigError, ModelLoadError
from furiosa_llm.execution.model_options import dtype_of, refuse_unserved_options
from furiosa_llm.modeling.loader import load_model
from furiosa_llm.modeling.quantized_linear import Fp8Linear, Int8WeightLinear, quantize_linears
from tests.unit.gpu.host_waits import HostWaits

GPU = torch.device("cuda:0")
CPU = torch.device("cpu")


def make_linear(num_inputs: int = 64, num_outputs: int = 48, *, bias: bool = True) -> nn.Linear:
    torch.manual_seed(0)
    return nn.Linear(num_inputs, num_outputs, bias=bias).to(torch.bfloat16)


@pytest.mark.parametrize(("kind", "tolerance"), [(Fp8Linear, 0.05), (Int8WeightLinear, 0.02)])
@pytest.mark.parametrize("bias", [True, False])
def test_a_layer_computes_about_what_it_was_made_from(
    kind: type[nn.Module], tolerance: float, bias: bool
) -> None:
    linear = make_linear(bias=bias)
    rows = torch.randn(2, 5, 64, dtype=torch.bfloat16) * torch.tensor([1e-3, 1, 30, 5, 1])[:, None]
    rows = rows.bfloat16()

    with torch.inference_mode(), HostWaits() as waits:
        output = kind(linear)(rows)

    expected = torch.nn.functional.linear(
        rows.double(),
        linear.weight.double(),
        linear.bias.double() if bias else None,
    )
    assert output.dtype == torch.bfloat16
    assert output.shape == (2, 5, 48)
    errors = (output.double() - expected).norm(dim=-1) / expected.norm(dim=-1)
    assert errors.max() < tolerance
    assert waits.names == []


@pytest.mark.parametrize("kind", [Fp8Linear, Int8WeightLinear])
def test_weights_take_a_byte_each(kind: type[nn.Module]) -> None:
    layer = kind(make_linear(bias=False))

    (weight,) = [buffer for name, buffer in layer.named_buffers() if name == "weight"]
    assert weight.nbytes == 64 * 48
    assert not list(layer.parameters())


@pytest.mark.parametrize("quantization", ["fp8", "int8"])
def test_a_model_of_8_bits_says_about_the_same(
    quantization: str, checkpoint: Callable[[str], Path]
) -> None:
    model = load_model(str(checkpoint("Llama")), dtype=torch.bfloat16).model
    model.set_attn_implementation("sdpa")
    token_ids = torch.arange(10, 40)[None]

    with torch.inference_mode():
        expected = model(token_ids).logits.float().log_softmax(-1)
        num_replaced = quantize_linears(model, quantization)
        actual = model(token_ids).logits.float().log_softmax(-1)

    assert num_replaced == 2 * 7  # all but the output embedding
    assert type(model.get_output_embeddings()) is nn.Linear
    assert model.dtype == torch.bfloat16
    divergence = (expected.exp() * (expected - actual)).sum(-1).mean()
    assert 0 < divergence < 0.2


class _NoSuchKernel(nn.Linear):
    pass


def test_what_cannot_be_quantised_is_left_or_refused(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ModelLoadError, match="Sequential cannot be quantised to fp8: it has no"):
        quantize_linears(nn.Sequential(_NoSuchKernel(16, 16)), "fp8")

    def refuse(self: Fp8Linear, inputs: torch.Tensor) -> torch.Tensor:
        if self.weight.shape[1] == 24:
            raise RuntimeError("sizes must be multiples of 16")
        return inputs @ (self.weight.to(inputs.dtype) * self.scales.t().to(inputs.dtype)).t()

    monkeypatch.setattr(Fp8Linear, "forward", refuse)
    model = nn.Sequential(make_linear(32, 24, bias=False), make_linear(24, 16, bias=False))
    with caplog.at_level(logging.WARNING):
        assert quantize_linears(model, "fp8") == 1
    assert type(model[0]) is Fp8Linear
    assert type(model[1]) is nn.Linear
    assert "1 of 2 linear layers are not quantised" in caplog.text


def test_fp8_is_for_gpus_and_whole_models() -> None:
    args = EngineArgs(model="m", quantization="fp8")

    refuse_unserved_options(args, GPU, is_split=False)
    with pytest.raises(ConfigError, match=r"quantization fp8 is for GPUs, .* give int8"):
        refuse_unserved_options(args, CPU, is_split=False)
    with pytest.raises(ConfigError, match="quantization is not supported with a model that is spl"):
        refuse_unserved_options(args, GPU, is_split=True)
    with pytest.raises(ConfigError, match="deterministic is not supported on cuda:0"):
        refuse_unserved_options(EngineArgs(model="m", deterministic=True), GPU, is_split=False)


def test_the_type_of_what_is_not_quantised_depends_on_the_device() -> None:
    def of(device: torch.device, quantization: str | None, dtype: str) -> torch.dtype | None:
        return dtype_of(EngineArgs(model="m", quantization=quantization, dtype=dtype), device)

    assert of(CPU, "int8", "bfloat16") == of(CPU, None, "auto") == torch.float32
    assert of(GPU, "fp8", "bfloat16") == of(GPU, None, "bfloat16") == torch.bfloat16
    assert of(GPU, "int8", "auto") is of(GPU, None, "auto") is None
