"""Gated MLPs with one product for gate and up, as a GPU likes them: large and few."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn

from furiosa_llm.modeling.tensor_linear import bias_of, make_linear

_CHILDREN = frozenset({"gate_proj", "up_proj", "down_proj", "act_fn"})
_LINEARS = ("gate_proj", "up_proj", "down_proj")
_NUM_TRIED_ROWS = 4
_TOLERANCE = 1e-2  # of the norm: sums in another order, of bfloat16


class JoinedMlp(nn.Module):
    """down(act(gate(x)) * up(x)), where gate and up are one linear layer."""

    def __init__(
        self,
        gate: nn.Linear,
        up: nn.Linear,
        down: nn.Linear,
        activation: Callable[[torch.Tensor], torch.Tensor],
    ) -> None:
        """Copies the weights of gate and up; those of down are shared."""
        super().__init__()
        biases = [bias for bias in (bias_of(gate), bias_of(up)) if bias is not None]
        weight = torch.cat([gate.weight.detach(), up.weight.detach()])
        self.gate_up_proj = make_linear(weight, torch.cat(biases) if biases else None)
        self.down_proj = down
        self.activation = activation

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """[*, I] -> [*, I]."""
        gate, up = self.gate_up_proj(inputs).chunk(2, dim=-1)
        output: torch.Tensor = self.down_proj(self.activation(gate) * up)
        return output


def join_mlps(model: nn.Module) -> int:
    """Replaces gated MLPs of a model, in place, and returns how many.

    One whose replacement says something else about a few rows stays as it is.
    """
    found = {
        name: module
        for name, module in model.named_modules()
        if dict(module.named_children()).keys() == _CHILDREN
    }
    num_joined = 0
    for name, module in found.items():
        joined = _joined(module)
        if joined is not None:
            model.set_submodule(name, joined)
            num_joined += 1
    return num_joined


@torch.inference_mode()
def _joined(module: nn.Module) -> JoinedMlp | None:
    linears = [module.get_submodule(name) for name in _LINEARS]
    plain = [linear for linear in linears if type(linear) is nn.Linear]
    if len(plain) < len(_LINEARS):
        return None
    gate, up, down = plain
    if gate.weight.shape != up.weight.shape or (bias_of(gate) is None) != (bias_of(up) is None):
        return None
    generator = torch.Generator().manual_seed(0)
    drawn = torch.randn(_NUM_TRIED_ROWS, gate.in_features, generator=generator)
    rows = drawn.to(device=gate.weight.device, dtype=gate.weight.dtype)
    joined = JoinedMlp(gate, up, down, module.get_submodule("act_fn"))
    expected = module(rows)
    if not isinstance(expected, torch.Tensor):
        return None
    difference = (joined(rows) - expected).float().norm()
    return joined if difference <= _TOLERANCE * expected.float().norm() else None
