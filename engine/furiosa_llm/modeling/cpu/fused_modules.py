"""Modules that compute what transformers' do, in fewer passes over memory.

Each is made from the module that it replaces, or not at all: `of` returns None for one that looks
otherwise. That a replacement does compute the same is for `fusion` to find out.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import nn
from transformers.activations import ACT2FN

from furiosa_llm.modeling.cpu import layer_kernels
from furiosa_llm.modeling.cpu.packed_linear import PackedLinear, packable_linears
from furiosa_llm.modeling.cpu.simd import Floats


class FusedRmsNorm(nn.Module):
    """Root mean square normalisation (Zhang and Sennrich 2019) in one pass."""

    def __init__(self, weight: Floats, epsilon: float) -> None:
        super().__init__()
        self.scale = weight  # [I]
        self.epsilon = epsilon

    @classmethod
    def candidates(cls, module: nn.Module) -> list[FusedRmsNorm]:
        """Returns what may compute the same: some norms add one to their weights."""
        weight = getattr(module, "weight", None)
        epsilon = getattr(module, "variance_epsilon", getattr(module, "eps", None))
        is_norm = type(module).__name__.endswith("RMSNorm")
        if not (is_norm and isinstance(epsilon, float) and _is_plain_vector(weight)):
            return []
        scale = weight.detach().clone().numpy()  # type: ignore[union-attr]
        return [cls(scale, epsilon), cls(scale + np.float32(1.0), epsilon)]

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """[*, I] -> [*, I]."""
        rows = inputs.contiguous()
        output = torch.empty_like(rows)
        size = rows.shape[-1]
        layer_kernels.normalize(
            rows.view(-1, size).numpy(), self.scale, self.epsilon, output.view(-1, size).numpy()
        )
        return output


class FusedGatedMlp(nn.Module):
    """down(activation(gate(x)) * up(x)), with one product for gate and up."""

    def __init__(self, gate_up: PackedLinear, down: PackedLinear, activation: nn.Module) -> None:
        super().__init__()
        self.gate_up_proj, self.down_proj = gate_up, down
        self._activation = activation

    @classmethod
    def of(cls, module: nn.Module) -> FusedGatedMlp | None:
        """Takes the three layers over, if the module has such."""
        linears = packable_linears(module, ("gate_proj", "up_proj", "down_proj"))
        activation = getattr(module, "act_fn", None)
        if linears is None or not isinstance(activation, nn.Module):
            return None
        gate, up, down = linears
        return cls(PackedLinear.of(gate, up), PackedLinear.of(down), activation)

    @property
    def is_silu(self) -> bool:
        """Whether the activation is the one that kernels know."""
        return type(self._activation) is type(ACT2FN["silu"])

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """[*, I] -> [*, I]."""
        gate, up = self.gate_up_proj(hidden_states).chunk(2, dim=-1)
        if self.is_silu:
            gated = hidden_states.new_empty(gate.shape)
            size = gate.shape[-1]
            layer_kernels.gate(*(part.reshape(-1, size).numpy() for part in (gate, up, gated)))
        else:
            gated = self._activation(gate) * up
        output: torch.Tensor = self.down_proj(gated)
        return output


def _is_plain_vector(weight: object) -> bool:
    return (
        isinstance(weight, torch.Tensor)
        and weight.ndim == 1
        and weight.dtype == torch.float32
        and weight.device.type == "cpu"
    )
