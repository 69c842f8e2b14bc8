"""Linear layers whose weights lie as our matrix product reads them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Self

import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from furiosa_llm.modeling.cpu import products
from furiosa_llm.modeling.cpu.core_threads import CoreThreads
from furiosa_llm.modeling.cpu.int8_rounding import round_weights
from furiosa_llm.modeling.cpu.matmul_kernel import FloatWeights, pack
from furiosa_llm.modeling.cpu.products import Weights


class PackedLinear(nn.Module):
    """y = x W^T + b, for the same x as many times as there are weights.

    A row of the result does not depend on the other rows.

    Attributes:
        weights: As the product reads them.
        threads: To compute with.
    """

    weights: Weights

    def __init__(self, weights: Weights, *, in_features: int, out_features: int) -> None:
        """Takes packed weights; the last panel may have more outputs than the layer."""
        super().__init__()
        self.weights = weights
        self.in_features, self.out_features = in_features, out_features
        self.threads = CoreThreads(1)

    @classmethod
    def of(cls, *linears: nn.Module) -> Self:
        """Packs layers that are given the same input into one, their outputs side by side."""
        weights = [weight_of(linear) for linear in linears]
        weight = weights[0] if len(weights) == 1 else torch.cat(weights)
        biases = [linear.bias for linear in linears]
        packed = pack(weight, joined_bias(weights, biases))  # type: ignore[arg-type]
        return cls(packed, in_features=weight.shape[1], out_features=weight.shape[0])

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """[*, I] -> [*, O]."""
        output = torch.empty(*inputs.shape[:-1], self.out_features)
        floats = inputs.reshape(-1, self.in_features).contiguous().numpy()
        rows = products.rows_of(floats, self.weights, self.threads)
        results = output.view(-1, self.out_features).numpy()
        if len(results):  # else no token of the step is sampled
            self.threads.share(
                lambda share, num_shares: products.multiply(
                    rows, self.weights, results, share, num_shares
                ),
                num_units=products.num_panels(self.weights),
            )
        return output

    def extra_repr(self) -> str:
        """What `print(model)` shows of it."""
        return f"{self.in_features}, {self.out_features}"


class Int8Linear(PackedLinear):
    """The same, of rounded x and W: 8 bits for each number."""

    @classmethod
    def of(cls, *linears: nn.Module) -> Self:
        """Rounds the weights of layers that are given the same input."""
        return cls.of_packed(PackedLinear.of(*linears))

    @classmethod
    def of_packed(cls, linear: PackedLinear) -> Self:
        """Rounds the weights of a layer that is packed already."""
        assert isinstance(linear.weights, FloatWeights)
        return cls(
            round_weights(linear.weights),
            in_features=linear.in_features,
            out_features=linear.out_features,
        )


def can_pack(module: nn.Module) -> bool:
    """Tells whether a layer is a plain one of a type that is packed."""
    return (
        type(module) in (nn.Linear, Conv1D)
        and isinstance(module.weight, torch.Tensor)
        and module.weight.dtype == torch.float32
        and module.weight.device.type == "cpu"
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
