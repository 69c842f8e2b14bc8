"""Linear layers that the ranks of a tensor-parallel group compute together."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import nn
from torch.nn.functional import pad


class TensorGroup(Protocol):
    """The ranks that hold one stage's weights together."""

    @property
    def rank(self) -> int:
        """The place of this rank in the group, from 0."""

    @property
    def size(self) -> int:
        """Ranks in the group."""

    def sum(self, tensor: torch.Tensor) -> torch.Tensor:
        """Returns the sum of the ranks' tensors, the same on every rank. May change `tensor`."""

    def concatenate(self, tensor: torch.Tensor) -> torch.Tensor:
        """Returns the tensors of all ranks, of one shape, side by side in the last dimension."""


class SummedLinear(nn.Module):
    """A linear layer whose inputs are split: the ranks' products are summed."""

    def __init__(self, whole: nn.Linear, group: TensorGroup, *, splits_input: bool) -> None:
        super().__init__()
        self._group = group
        self._splits_input = splits_input
        self.linear = make_linear(share_of(whole.weight, group, dim=1), None)
        self.bias = bias_of(whole)

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        """Multiplies by this rank's columns. [.., I] or [.., I / ranks] -> [.., O]."""
        if self._splits_input:
            hidden = hidden.chunk(self._group.size, dim=-1)[self._group.rank]
        output = self._group.sum(self.linear(hidden))
        return output if self.bias is None else output + self.bias


class GatheredLinear(nn.Module):
    """A linear layer whose outputs are split, and put together again on every rank."""

    def __init__(self, whole: nn.Linear, group: TensorGroup, *, is_tied: bool) -> None:
        super().__init__()
        self._group = group
        self._num_outputs = whole.out_features
        num_rows = -(-self._num_outputs // group.size)
        rows = slice(group.rank * num_rows, (group.rank + 1) * num_rows)
        weight, bias = whole.weight.data[rows], bias_of(whole)
        # Rows that the last rank lacks are zeros; they are cut off once the outputs are together.
        num_missing = num_rows - weight.shape[0]
        if bias is not None:
            bias = pad(bias.data[rows], (0, num_missing)).clone()
        if num_missing or not is_tied:  # else it stays a part of the embedding, at no cost
            weight = pad(weight, (0, 0, 0, num_missing)).clone()
        self.linear = make_linear(weight, bias)

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        """Multiplies by this rank's rows and gathers. [.., I] -> [.., O]."""
        return self._group.concatenate(self.linear(hidden))[..., : self._num_outputs]


def share_of(tensor: torch.Tensor, group: TensorGroup, *, dim: int) -> torch.Tensor:
    """Copies this rank's part, so that the whole tensor can be freed."""
    return tensor.data.chunk(group.size, dim=dim)[group.rank].clone(
        memory_format=torch.contiguous_format
    )


def bias_of(linear: nn.Linear) -> torch.Tensor | None:
    """Returns the bias, if the layer has one."""
    return dict(linear.named_parameters(recurse=False)).get("bias")


def make_linear(weight: torch.Tensor, bias: torch.Tensor | None) -> nn.Linear:
    """Returns a linear layer of these weights [O, I] and [O]."""
    num_outputs, num_inputs = weight.shape
    linear = nn.Linear(num_inputs, num_outputs, bias=bias is not None, device="meta")
    linear.weight = nn.Parameter(weight, requires_grad=False)
    if bias is not None:
        linear.bias = nn.Parameter(bias, requires_grad=False)
    return linear
