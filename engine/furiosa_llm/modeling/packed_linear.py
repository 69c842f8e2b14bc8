"""Linear layers whose weights lie as the kernels of oneDNN read them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

# The kernels are chosen for about so many tokens in a step; they serve any number.
_NUM_TOKENS = 64

Activation = tuple[str, str]  # what oneDNN calls it, and its way to compute it
IDENTITY: Activation = ("none", "")


class PackedLinear(nn.Module):
    """y = f(x W^T + b), for the same x as many times as there are weights.

    A row of the result does not depend on the other rows, if there are any: for a single one, and
    maybe for a few, oneDNN sums in another order.

    Attributes:
        min_rows: Fewer rows are filled up to so many, so that a row on its own gives the same too.
        activation: f.
    """

    MIN_ROWS_TO_BE_INDEPENDENT = 16

    def __init__(
        self,
        weights: Sequence[torch.Tensor],
        biases: Sequence[torch.Tensor | None],
        activation: Activation = IDENTITY,
    ) -> None:
        """Packs weights [O, I] one below the other; biases [O], or None."""
        super().__init__()
        weight = torch.cat(list(weights))
        self.out_features, self.in_features = weight.shape
        self._bias = joined_bias(weights, biases)
        self._packed = torch.ops.mkldnn._reorder_linear_weight(weight, _NUM_TOKENS)
        self.activation = activation
        self.min_rows = 1

    @classmethod
    def of(cls, *linears: nn.Module, activation: Activation = IDENTITY) -> PackedLinear:
        """Packs layers that are given the same input into one, their outputs side by side."""
        return cls(
            [weight_of(linear) for linear in linears],
            [linear.bias for linear in linears],  # type: ignore[misc]
            activation,
        )

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """[*, I] -> [*, O]."""
        if inputs.numel() == 0:  # no token of the step is sampled
            return inputs.new_empty(*inputs.shape[:-1], self.out_features)
        name, algorithm = self.activation
        rows = self._filled(inputs)
        output: torch.Tensor = torch.ops.mkldnn._linear_pointwise(
            rows, self._packed, self._bias, name, [], algorithm
        )
        return output if rows is inputs else _first_rows(output, inputs)

    def multiplied(self, inputs: torch.Tensor, factor: torch.Tensor) -> torch.Tensor:
        """[*, I] -> [*, O], each element times that of `factor` [*, O]."""
        rows = self._filled(inputs)
        output: torch.Tensor = torch.ops.mkldnn._linear_pointwise.binary(
            rows, self._filled(factor), self._packed, self._bias, "mul"
        )
        return output if rows is inputs else _first_rows(output, inputs)

    def _filled(self, inputs: torch.Tensor) -> torch.Tensor:
        """Returns inputs, or [min_rows, I] that begins with them."""
        num_rows = inputs.numel() // inputs.shape[-1]
        if num_rows >= self.min_rows:
            return inputs
        rows = inputs.new_zeros(self.min_rows, inputs.shape[-1])
        rows[:num_rows] = inputs.reshape(num_rows, -1)
        return rows

    def extra_repr(self) -> str:
        """What `print(model)` shows of it."""
        return f"{self.in_features}, {self.out_features}, activation={self.activation[0]}"


def _first_rows(output: torch.Tensor, inputs: torch.Tensor) -> torch.Tensor:
    return output[: inputs.numel() // inputs.shape[-1]].view(*inputs.shape[:-1], -1)


def can_pack(module: nn.Module) -> bool:
    """Tells whether a layer is a plain one of a type that oneDNN computes with."""
    return (
        type(module) in (nn.Linear, Conv1D)
        and isinstance(module.weight, torch.Tensor)
        and module.weight.dtype == torch.float32
        and module.weight.device.type == "cpu"
        and torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
    )


def packable_linears(module: nn.Module, names: Sequence[str]) -> list[nn.Module] | None:
    """Returns the layers of a module that have these names, if all are there and can be packed."""
    linears = [getattr(module, name, None) for name in names]
    found = [linear for linear in linears if isinstance(linear, nn.Module) and can_pack(linear)]
    return found if len(found) == len(names) else None


def weight_of(module: nn.Module) -> torch.Tensor:
    """Returns the weight [O, I] of a layer that can be packed."""
    weight = module.weight
    assert isinstance(weight, torch.Tensor)
    return weight.detach().t() if isinstance(module, Conv1D) else weight.detach()


def joined_bias(
    weights: Sequence[torch.Tensor], biases: Sequence[torch.Tensor | None]
) -> torch.Tensor | None:
    """Returns the biases of several layers [O] side by side; None if no layer has one."""
    if all(bias is None for bias in biases):
        return None
    return torch.cat(
        [
            weight.new_zeros(weight.shape[0]) if bias is None else bias.detach()
            for weight, bias in zip(weights, biases, strict=True)
        ]
    )
