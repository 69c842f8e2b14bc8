"""Linear layers of 8 and 4 bits for a GPU, by torch's operations on a CPU."""

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
from furiosa_llm.modeling.gpu.int4_linear import Int4WeightLinear
from furiosa_llm.modeling.gpu.quantized_linear import Fp8Linear, Int8WeightLinear, quantize_linears
from furiosa_llm.modeling.loader import load_model
from tests.unit.gpu.host_waits import HostWaits

GPU = torch.device("cuda:0")
CPU = torch.device("cpu")


def make_linear(num_inputs: int = 64, num_outputs: int = 48, *, bias: bool = True) -> nn.Linear:
    torch.manual_seed(0)
    return nn.Linear(num_inputs, num_outputs, bias=bias).to(torch.bfloat16)


@pytest.mark.parametrize(
    ("kind", "tolerance"),
    [(Fp8Linear, 0.05), (Int8WeightLinear, 0.02), (Int4WeightLinear, 0.1)],
)
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


@pytest.mark.parametrize(
    ("kind", "num_bits"), [(Fp8Linear, 8), (Int8WeightLinear, 8), (Int4WeightLinear, 4)]
)
def test_weights_take_so_many_bits_each(kind: type[nn.Module], num_bits: int) -> None:
    layer = kind(make_linear(bias=False))

    (weight,) = [buffer for name, buffer in layer.named_buffers() if name == "weight"]
    assert weight.nbytes * 8 == 64 * 48 * num_bits
    assert not list(layer.parameters())


@torch.inference_mode()
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_4_bits_are_no_more_than_half_a_step_off(dtype: torch.dtype) -> None:
    linear = make_linear(96, 32, bias=False)
    linear.weight[0, :32] = 0.5  # a group of one number
    linear.weight[1, :32] = 0
    linear.weight[2, 40] = 3  # the largest one of its group by far
    layer = Int4WeightLinear(linear.to(dtype))

    weight = layer(torch.eye(96, dtype=dtype)).t()

    groups = linear.weight.float().view(32, -1, 32)
    steps = (groups.amax(-1) - groups.amin(-1)) / 15
    errors = (weight.float().reshape(32, -1, 32) - groups).abs()
    rounding = 2**-8 * groups.abs().amax(-1)  # of bfloat16
    assert weight.dtype == dtype
    assert (errors <= (steps / 2 + rounding)[..., None]).all()


@pytest.mark.parametrize(("num_inputs", "num_outputs"), [(48, 32), (64, 24)])
def test_sizes_that_the_kernel_of_4_bits_does_not_know_are_left(
    num_inputs: int, num_outputs: int
) -> None:
    odd = make_linear(num_inputs, num_outputs, bias=False)
    model = nn.Sequential(odd, make_linear(64, 48))

    assert quantize_linears(model, "int4") == 1
    assert model[0] is odd


@pytest.mark.parametrize(("quantization", "most"), [("fp8", 0.2), ("int8", 0.2), ("int4", 1.0)])
def test_a_quantised_model_says_about_the_same(
    quantization: str, most: float, checkpoint: Callable[[str], Path]
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
    assert 0 < divergence < most


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


@pytest.mark.parametrize("quantization", ["fp8", "int4"])
def test_some_are_for_gpus_and_all_for_whole_models(quantization: str) -> None:
    args = EngineArgs(model="m", quantization=quantization)

    refuse_unserved_options(args, GPU, is_split=False)
    with pytest.raises(
        ConfigError, match=rf"quantization {quantization} is for GPUs, .* give int8"
    ):
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


@pytest.mark.parametrize("bias", [True, False])
def test_many_rows_of_8_bit_weights_are_computed_as_few_are(bias: bool) -> None:
    linear = Int8WeightLinear(make_linear(bias=bias))
    rows = torch.randn(40, 64, dtype=torch.bfloat16)

    with torch.inference_mode():
        together = linear(rows)
        alone = torch.cat([linear(row[None]) for row in rows])

    assert (together.float() - alone.float()).abs().max() <= 0.02 * alone.float().abs().max()
