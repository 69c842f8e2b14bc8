"""Linear layers whose weights have 4 bits, through torch's own kernels.

Written and tested on a CPU, where torch has a kernel like it; not yet measured on a GPU.
"""

from __future__ import annotations

import torch
from torch import nn

from furiosa_llm.modeling.tensor_linear import bias_of

_GROUP_SIZE = 32  # weights of one scale and one zero: with both, a weight takes 5 bits
_LARGEST = 15
_MIDDLE = 8  # the number that stands for the zero of its group
_NUM_INNER_TILES = 8  # of 16 inputs, side by side in memory
_SMALLEST_SCALE = 1e-12


class Int4WeightLinear(nn.Module):
    """y = x W^T + b, with W of 4 bits, a scale and a zero for each group along its rows.

    x is taken to bfloat16, the only type that the kernel of a GPU has.
    """

    weight: torch.Tensor  # packed as the kernel of the device reads it
    scales_and_zeros: torch.Tensor  # [I / group, O, 2] bfloat16
    bias: torch.Tensor | None  # [O]

    def __init__(self, linear: nn.Linear) -> None:
        """Rounds the weights of a layer.

        Raises:
            RuntimeError: The kernel does not know such sizes.
        """
        super().__init__()
        numbers, scales_and_zeros = _round(linear.weight.detach())
        self.register_buffer("weight", _packed(numbers))
        self.register_buffer("scales_and_zeros", scales_and_zeros)
        self.register_buffer("bias", bias_of(linear))

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """[*, I] -> [*, O]."""
        rows = inputs.reshape(-1, inputs.shape[-1]).to(torch.bfloat16).contiguous()
        multiply = torch._weight_int4pack_mm
        if rows.device.type == "cpu":
            multiply = torch._weight_int4pack_mm_for_cpu
        output = multiply(rows, self.weight, _GROUP_SIZE, self.scales_and_zeros)
        output = output.to(inputs.dtype).view(*inputs.shape[:-1], -1)
        return output if self.bias is None else output + self.bias


def _round(weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns numbers [O, I] int32 up to 15, and scales and zeros [I / group, O, 2].

    A weight is (number - 8) * scale + zero.

    Raises:
        RuntimeError: The groups do not divide the inputs.
    """
    groups = weight.float().reshape(len(weight), -1, _GROUP_SIZE)  # [O, I / group, group]
    smallest, largest = groups.aminmax(dim=-1, keepdim=True)
    scales = ((largest - smallest) / _LARGEST).clamp(min=_SMALLEST_SCALE)
    zeros = smallest + _MIDDLE * scales
    # What is rounded next makes up for what these lose.
    scales, zeros = scales.to(torch.bfloat16), zeros.to(torch.bfloat16)
    numbers = ((groups - zeros.float()) / scales.float()).round() + _MIDDLE
    numbers = numbers.clamp(0, _LARGEST).to(torch.int32).flatten(1)
    return numbers, torch.cat([scales, zeros], dim=-1).transpose(0, 1).contiguous()


def _packed(numbers: torch.Tensor) -> torch.Tensor:
    """Lays numbers out as the kernel of their device reads them."""
    if numbers.device.type == "cpu":
        return torch._convert_weight_to_int4pack_for_cpu(numbers, _NUM_INNER_TILES)
    pairs = (numbers[:, ::2] << 4 | numbers[:, 1::2]).to(torch.uint8)
    return torch._convert_weight_to_int4pack(pairs, _NUM_INNER_TILES)
