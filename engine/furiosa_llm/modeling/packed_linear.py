"""Linear layers whose weights lie as the kernels of oneDNN read them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

# The kernels are chosen for about so many tokens in a step; they serve any number.
_NUM_TOKENS = 64

Activation = tuple[str, str]  # what oneDNN calls it, and its way to compute it
IDENTITY: Activation = ("none", "")


class PackedLinear(nn.Module):
    """y = f(x W^T + b), for the same x as many times as there are weights.

    A row of the result does not depend on the other rows, but for steps of a few tokens.
    """

    def __init__(
        self,
        weights: Sequence[torch.Tensor],
        biases: Sequence[torch.Tensor | None],
        activation: Activation = IDENTITY,
    ) -> None:
        """Packs weights [O, I] one below the other; biases [O], or None."""
        super().__init__()
        weight = torch.cat([weight.detach() for weight in weights])
        self.out_features, self.in_features = weight.shape
        self._bias = _joined_bias(weights, biases)
        self._packed = torch.ops.mkldnn._reorder_linear_weight(weight, _NUM_TOKENS)
        self._activation = activation

    @classmethod
    def of(cls, *linears: nn.Linear, activation: Activation = IDENTITY) -> PackedLinear:
        """Packs layers that are given the same input into one, their outputs side by side."""
        return cls(
            [linear.weight for linear in linears], [linear.bias for linear in linears], activation
        )

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """[*, I] -> [*, O]."""
        name, algorithm = self._activation
        return torch.ops.mkldnn._linear_pointwise(  # type: ignore[no-any-return]  # no types
            inputs, self._packed, self._bias, name, [], algorithm
        )

    def multiplied(self, inputs: torch.Tensor, factor: torch.Tensor) -> torch.Tensor:
        """[*, I] -> [*, O], each element times that of `factor` [*, O]."""
        return torch.ops.mkldnn._linear_pointwise.binary(  # type: ignore[no-any-return]
            inputs, factor, self._packed, self._bias, "mul"
        )

    def extra_repr(self) -> str:
        """What `print(model)` shows of it."""
        return f"{self.in_features}, {self.out_features}, activation={self._activation[0]}"


def can_pack(module: nn.Module) -> bool:
    """Tells whether a layer is a plain one of a type that oneDNN computes with."""
    return (
        type(module) is nn.Linear
        and module.weight.dtype == torch.float32
        and module.weight.device.type == "cpu"
        and torch.backends.mkldnn.is_available()
    )


def _joined_bias(
    weights: Sequence[torch.Tensor], biases: Sequence[torch.Tensor | None]
) -> torch.Tensor | None:
    if all(bias is None for bias in biases):
        return None
    return torch.cat(
        [
            weight.new_zeros(weight.shape[0]) if bias is None else bias.detach()
            for weight, bias in zip(weights, biases, strict=True)
        ]
    )
