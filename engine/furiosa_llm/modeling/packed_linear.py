"""Linear layers whose weights lie as our matrix product reads them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from furiosa_llm.modeling import matmul_kernel
from furiosa_llm.modeling.core_threads import CoreThreads
from furiosa_llm.modeling.matmul_tile import PANEL_WIDTH


class PackedLinear(nn.Module):
    """y = x W^T + b, for the same x as many times as there are weights.

    A row of the result does not depend on the other rows.

    Attributes:
        threads: To compute with.
    """

    def __init__(
        self, weights: Sequence[torch.Tensor], biases: Sequence[torch.Tensor | None]
    ) -> None:
        """Packs weights [O, I] one below the other; biases [O], or None."""
        super().__init__()
        weight = torch.cat(list(weights))
        self.out_features, self.in_features = weight.shape
        self._packed = matmul_kernel.pack(weight)
        self._bias = matmul_kernel.pack_bias(joined_bias(weights, biases), self.out_features)
        self.threads = CoreThreads(1)

    @classmethod
    def of(cls, *linears: nn.Module) -> PackedLinear:
        """Packs layers that are given the same input into one, their outputs side by side."""
        return cls(
            [weight_of(linear) for linear in linears],
            [linear.bias for linear in linears],  # type: ignore[misc]
        )

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """[*, I] -> [*, O]."""
        output = torch.empty(*inputs.shape[:-1], self.out_features)
        rows = inputs.reshape(-1, self.in_features).contiguous().numpy()
        results = output.view(-1, self.out_features).numpy()
        num_panels = self._bias.size // PANEL_WIDTH

        def multiply_share(share: int, num_shares: int) -> None:
            panels = (num_panels * share // num_shares, num_panels * (share + 1) // num_shares)
            matmul_kernel.multiply(rows, self._packed, self._bias, results, panels)

        if len(rows):  # else no token of the step is sampled
            self.threads.share(multiply_share, num_panels)
        return output

    def extra_repr(self) -> str:
        """What `print(model)` shows of it."""
        return f"{self.in_features}, {self.out_features}"


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
