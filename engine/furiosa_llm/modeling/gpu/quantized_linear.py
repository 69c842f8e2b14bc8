"""Linear layers of 8 bits, or fewer, for a GPU, through torch's own kernels.

Written and tested on a CPU, where torch has the same operations; not yet measured on a GPU.
"""

from __future__ import annotations

import contextlib
import functools
import logging
from collections.abc import Callable, Iterator

import torch
from torch import nn

from furiosa_llm.errors import ModelLoadError
from furiosa_llm.modeling.gpu.int4_linear import Int4WeightLinear
from furiosa_llm.modeling.gpu.joined_linear import agrees, few_rows
from furiosa_llm.modeling.tensor_linear import bias_of

_logger = logging.getLogger(__name__)

_FP8 = torch.float8_e4m3fn
_LARGEST_FP8 = torch.finfo(_FP8).max
_LARGEST_INT8 = 127
_SMALLEST_SCALE = 1e-12
_MOST_SLOW_ROWS = 16  # torch's kernel for 8 bits multiplies without matrix units

Rounded = tuple[torch.Tensor, torch.Tensor]  # [R, I] float8 and their scales [R, 1] float32
RoundRows = Callable[[torch.Tensor], Rounded]


class Fp8Linear(nn.Module):
    """y = x W^T + b, with one scale for each row of x, found as it comes, and of W."""

    weight: torch.Tensor  # [O, I] float8
    scales: torch.Tensor  # [1, O] float32
    bias: torch.Tensor | None  # [O]

    def __init__(self, linear: nn.Linear, round_rows: RoundRows | None = None) -> None:
        """Rounds the weights of a layer. Rows are rounded in plain torch if not told how."""
        super().__init__()
        self._round_rows = round_rows or round_to_fp8
        weight, scales = round_to_fp8(linear.weight.detach())
        self.register_buffer("weight", weight)
        self.register_buffer("scales", scales.t().contiguous())
        self.register_buffer("bias", bias_of(linear))

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """[*, I] -> [*, O]."""
        rows, scales = self._round_rows(inputs.reshape(-1, inputs.shape[-1]))
        output = torch._scaled_mm(
            rows,
            self.weight.t(),
            scale_a=scales,
            scale_b=self.scales,
            out_dtype=torch.bfloat16,  # the only type that there is for scales of rows
        )
        output = output.to(inputs.dtype).view(*inputs.shape[:-1], -1)
        return output if self.bias is None else output + self.bias


class Int8WeightLinear(nn.Module):
    """y = x W^T + b, with W of 8 bits and one scale for each of its rows; x is not rounded."""

    weight: torch.Tensor  # [O, I] int8
    scales: torch.Tensor  # [O], of the type of x
    bias: torch.Tensor | None  # [O]

    def __init__(self, linear: nn.Linear) -> None:
        """Rounds the weights of a layer."""
        super().__init__()
        weight = linear.weight.detach()
        scales = _scales(weight, _LARGEST_INT8)
        self.register_buffer("weight", (weight.float() / scales).round().to(torch.int8))
        self.register_buffer("scales", scales[:, 0].to(weight.dtype))
        self.register_buffer("bias", bias_of(linear))

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """[*, I] -> [*, O]."""
        rows = inputs.reshape(-1, inputs.shape[-1])
        if len(rows) <= _MOST_SLOW_ROWS:
            output = torch._weight_int8pack_mm(rows, self.weight, self.scales)
        else:
            output = nn.functional.linear(rows, self.weight.to(rows.dtype)) * self.scales
        output = output.view(*inputs.shape[:-1], -1)
        return output if self.bias is None else output + self.bias


_KINDS = {"fp8": Fp8Linear, "int8": Int8WeightLinear, "int4": Int4WeightLinear}
# Of the norm of what a layer computes: 3 bits of mantissa give about 0.03, 4 bits in all 0.08.
_TOLERANCES = {"fp8": 0.1, "int8": 0.1, "int4": 0.2}


def quantize_linears(model: nn.Module, quantization: str) -> int:
    """Replaces the linear layers of a model but for its output embedding, in place.

    One whose replacement fails, or says something else, stays as it is.

    Args:
        model: On the device where it is to run.
        quantization: `fp8`, weights and activations; `int8` or `int4`, weights alone.

    Returns:
        How many were replaced.

    Raises:
        ModelLoadError: None can be.
    """
    head = getattr(model, "get_output_embeddings", lambda: None)()
    names = [
        name
        for name, module in model.named_modules()
        if type(module) is nn.Linear and module is not head
    ]
    num_replaced = 0
    for name in names:  # not by module, so that weights are given back one after the other
        linear = model.get_submodule(name)
        assert isinstance(linear, nn.Linear)
        replacement = _replacement(linear, quantization)
        if replacement is not None:
            model.set_submodule(name, replacement)
            num_replaced += 1
    if not num_replaced:
        raise ModelLoadError(
            f"{type(model).__name__} cannot be quantised to {quantization}: it has no linear layer "
            "that can be computed so on this device"
        )
    if num_replaced < len(names):
        _logger.warning(
            "%d of %d linear layers are not quantised", len(names) - num_replaced, len(names)
        )
    return num_replaced


@torch.inference_mode()
def _replacement(linear: nn.Linear, quantization: str) -> nn.Module | None:
    """Returns a layer of rounded weights, if it computes about the same of a few rows."""
    rows = few_rows(linear)
    expected = linear(rows)
    for make in _makers(quantization):
        try:
            replacement = make(linear)
            actual = replacement(rows)
        except (RuntimeError, ValueError, NotImplementedError) as error:
            _logger.info("a layer of %s is not quantised: %s", tuple(linear.weight.shape), error)
            continue
        if agrees(actual, expected, tolerance=_TOLERANCES[quantization]):
            return replacement
    return None


def _makers(quantization: str) -> Iterator[Callable[[nn.Linear], nn.Module]]:
    """Yields what may make a layer of rounded weights, the fastest first."""
    if quantization == "fp8":
        with contextlib.suppress(ImportError):  # a torch without Triton
            from furiosa_llm.modeling.gpu import triton_rounding

            round_rows = functools.partial(
                triton_rounding.round_to_fp8, largest=_LARGEST_FP8, smallest_scale=_SMALLEST_SCALE
            )
            yield functools.partial(Fp8Linear, round_rows=round_rows)
    yield _KINDS[quantization]


def round_to_fp8(rows: torch.Tensor) -> Rounded:
    """Returns rows [R, I] of float8 and their scales [R, 1] float32."""
    scales = _scales(rows, _LARGEST_FP8)
    return (rows.float() / scales).to(_FP8), scales


def _scales(rows: torch.Tensor, largest: float) -> torch.Tensor:
    """[R, 1] float32: what brings the largest number of each row to `largest`."""
    found = rows.float().abs().amax(dim=-1, keepdim=True) / largest
    return found.clamp(min=_SMALLEST_SCALE)
