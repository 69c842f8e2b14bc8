"""Gated MLPs with one product for gate and up, as a GPU likes them: large and few."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn

from furiosa_llm.modeling.joined_linear import agrees, few_rows, join_linears, joinable_linears

_CHILDREN = frozenset({"gate_proj", "up_proj", "down_proj", "act_fn"})


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
        self.gate_up_proj = join_linears([gate, up])
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
    found = [
        name
        for name, module in model.named_modules()
        if dict(module.named_children()).keys() == _CHILDREN
    ]
    num_joined = 0
    for name in found:  # by name, so that weights are given back one module after the other
        joined = _joined(model.get_submodule(name))
        if joined is not None:
            model.set_submodule(name, joined)
            num_joined += 1
    return num_joined


@torch.inference_mode()
def _joined(module: nn.Module) -> JoinedMlp | None:
    pair = joinable_linears(module, ("gate_proj", "up_proj"))
    down = module.get_submodule("down_proj")
    if pair is None or type(down) is not nn.Linear:
        return None
    gate, up = pair
    if gate.out_features != up.out_features:
        return None
    rows = few_rows(gate)
    joined = JoinedMlp(gate, up, down, module.get_submodule("act_fn"))
    expected = module(rows)
    if not isinstance(expected, torch.Tensor):
        return None
    return joined if agrees(joined(rows), expected) else None
