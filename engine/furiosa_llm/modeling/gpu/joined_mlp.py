"""Gated MLPs with one product for gate and up, as a GPU likes them: large and few."""

from __future__ import annotations

import logging
from collections.abc import Callable

import torch
from torch import nn

from furiosa_llm.modeling.gpu.joined_linear import agrees, few_rows, join_linears, joinable_linears
from furiosa_llm.modeling.gpu.layer_kernels import GateKind, LayerKernels, gate_kind_of

_logger = logging.getLogger(__name__)

_CHILDREN = frozenset({"gate_proj", "up_proj", "down_proj", "act_fn"})
_JOINED_CHILDREN = frozenset({"gate_up_proj", "down_proj", "activation_fn"})  # Phi-3, GLM-4


class JoinedMlp(nn.Module):
    """down(act(gate(x)) * up(x)), where gate and up are one linear layer."""

    def __init__(
        self,
        gate_up: nn.Linear,
        down: nn.Linear,
        activation: Callable[[torch.Tensor], torch.Tensor],
    ) -> None:
        """Takes the layers; gates are what the first one computes first."""
        super().__init__()
        self.gate_up_proj = gate_up
        self.down_proj = down
        self.activation = activation
        self._kernels: LayerKernels | None = None
        self._kind: GateKind = "silu"

    def use_kernels(self, kernels: LayerKernels | None) -> bool:
        """Lets a kernel gate, or none. Returns whether one does: it may not know the activation."""
        kind = gate_kind_of(self.activation)
        self._kernels = None if kind is None else kernels
        self._kind = kind or self._kind
        return self._kernels is not None

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """[*, I] -> [*, I]."""
        product = self.gate_up_proj(inputs)
        gated = None
        if self._kernels is not None:
            gated = self._kernels.gate(product, self._kind)
        if gated is None:
            gate, up = product.chunk(2, dim=-1)
            gated = self.activation(gate) * up
        output: torch.Tensor = self.down_proj(gated)
        return output


def join_mlps(model: nn.Module, kernels: LayerKernels | None = None) -> int:
    """Replaces gated MLPs of a model, in place, and returns how many.

    One whose replacement says something else about a few rows stays as it is.

    Args:
        model: The model.
        kernels: What may gate. With it, MLPs whose gate and up are joined are replaced as well.
    """
    known = {_CHILDREN} if kernels is None else {_CHILDREN, _JOINED_CHILDREN}
    found = [
        name
        for name, module in model.named_modules()
        if frozenset(dict(module.named_children())) in known
    ]
    num_joined = 0
    for name in found:  # by name, so that weights are given back one module after the other
        joined = _joined(model.get_submodule(name), kernels)
        if joined is not None:
            model.set_submodule(name, joined)
            num_joined += 1
    return num_joined


@torch.inference_mode()
def _joined(module: nn.Module, kernels: LayerKernels | None) -> JoinedMlp | None:
    joined = _joined_parts(module)
    if joined is None:
        return None
    rows = few_rows(joined.gate_up_proj)
    expected = module(rows)
    if not isinstance(expected, torch.Tensor):
        return None
    if joined.use_kernels(kernels):
        try:
            if agrees(joined(rows), expected):
                return joined
        except RuntimeError as error:
            _logger.info("%s is not gated in one kernel: %s", type(module).__name__, error)
        joined.use_kernels(None)
    return joined if agrees(joined(rows), expected) else None


def _joined_parts(module: nn.Module) -> JoinedMlp | None:
    """Joins the linear layers of a module, or takes those that are joined."""
    down = module.get_submodule("down_proj")
    if type(down) is not nn.Linear:
        return None
    children = dict(module.named_children())
    gate_up = children.get("gate_up_proj")
    if type(gate_up) is nn.Linear:
        return JoinedMlp(gate_up, down, module.get_submodule("activation_fn"))
    pair = joinable_linears(module, ("gate_proj", "up_proj"))
    if pair is None or pair[0].out_features != pair[1].out_features:
        return None
    return JoinedMlp(join_linears(pair), down, module.get_submodule("act_fn"))
