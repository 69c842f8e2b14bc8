"""Modules that compute what transformers' do, in fewer passes over memory.

Each is made from the module that it replaces, or not at all: `of` returns None for one that looks
otherwise. That a replacement does compute the same is for `fusion` to find out.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import nn
from transformers.activations import ACT2FN

from furiosa_llm.modeling import layer_kernels
from furiosa_llm.modeling.layer_kernels import Floats
from furiosa_llm.modeling.packed_linear import Activation, PackedLinear, packable_linears

_ACTIVATIONS: dict[str, Activation] = {
    "silu": ("swish", ""),
    "gelu": ("gelu", "none"),
    "gelu_pytorch_tanh": ("gelu", "tanh"),
    "relu": ("relu", ""),
}


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
        scale = weight.detach().contiguous().numpy()  # type: ignore[union-attr]
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
    """down(activation(gate(x)) * up(x)), with the activation and the factor in the products."""

    def __init__(self, gate: PackedLinear, up: PackedLinear, down: PackedLinear) -> None:
        super().__init__()
        self.gate_proj, self.up_proj, self.down_proj = gate, up, down

    @classmethod
    def of(cls, module: nn.Module) -> FusedGatedMlp | None:
        """Takes the three layers over, if the module has such."""
        linears = packable_linears(module, ("gate_proj", "up_proj", "down_proj"))
        activation = _activation_of(getattr(module, "act_fn", None))
        if activation is None or linears is None:
            return None
        gate, up, down = linears
        return cls(
            PackedLinear.of(gate, activation=activation), PackedLinear.of(up), PackedLinear.of(down)
        )

    @property
    def is_silu(self) -> bool:
        """Whether the activation is the one that other gated MLPs know."""
        return self.gate_proj.activation == _ACTIVATIONS["silu"]

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """[*, I] -> [*, I]."""
        gate = self.gate_proj(hidden_states)
        output: torch.Tensor = self.down_proj(self.up_proj.multiplied(hidden_states, gate))
        return output


def _activation_of(module: nn.Module | None) -> Activation | None:
    """Returns oneDNN's name of a function; modules do not tell theirs."""
    for name, activation in _ACTIVATIONS.items():
        if type(module) is type(ACT2FN[name]):
            return activation
    return None


def _is_plain_vector(weight: object) -> bool:
    return (
        isinstance(weight, torch.Tensor)
        and weight.ndim == 1
        and weight.dtype == torch.float32
        and weight.device.type == "cpu"
    )
