"""Linear layers of one input as one: what gated MLPs and attention modules are joined with."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from furiosa_llm.modeling.tensor_linear import bias_of, make_linear

_NUM_TRIED_ROWS = 4
_TOLERANCE = 1e-2  # of the norm: sums in another order, of bfloat16


def joinable_linears(module: nn.Module, names: Sequence[str]) -> list[nn.Linear] | None:
    """Returns the children of these names, if they are plain and may have one input."""
    children = dict(module.named_children())
    linears = [child for name in names if type(child := children.get(name)) is nn.Linear]
    kinds = {(linear.in_features, linear.weight.dtype) for linear in linears}
    return linears if len(linears) == len(names) and len(kinds) == 1 else None


def join_linears(linears: Sequence[nn.Linear]) -> nn.Linear:
    """Copies the weights of linear layers of one input into one layer, outputs side by side."""
    weight = torch.cat([linear.weight.detach() for linear in linears])
    biases = [bias_of(linear) for linear in linears]
    if all(bias is None for bias in biases):
        return make_linear(weight, None)
    rows = [
        linear.weight.new_zeros(linear.out_features) if bias is None else bias.detach()
        for linear, bias in zip(linears, biases, strict=True)
    ]
    return make_linear(weight, torch.cat(rows))


def few_rows(linear: nn.Linear) -> torch.Tensor:
    """Returns inputs that a layer can be tried with, [R, I], the same ones each time."""
    generator = torch.Generator().manual_seed(0)
    drawn = torch.randn(_NUM_TRIED_ROWS, linear.in_features, generator=generator)
    return drawn.to(device=linear.weight.device, dtype=linear.weight.dtype)


def agrees(actual: torch.Tensor, expected: torch.Tensor, *, tolerance: float = _TOLERANCE) -> bool:
    """Tells whether two results differ by no more than a share of the norm."""
    difference = (actual - expected).float().norm()
    return bool(difference <= tolerance * expected.float().norm())
