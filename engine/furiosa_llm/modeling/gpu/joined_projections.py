"""Attention modules with one product for queries, keys and values.

Their forward pass stays transformers' own: it calls three small modules in the places of its
three linear layers, and the first one that is called computes what all three return.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn

from furiosa_llm.modeling.gpu.joined_linear import agrees, join_linears, joinable_linears
from furiosa_llm.modeling.paged_attention import AttentionLayer

_logger = logging.getLogger(__name__)

_NAMES = ("q_proj", "k_proj", "v_proj")


class JoinedProjection(nn.Module):
    """Linear layers of one input, computed as one for the first of them that is asked for.

    The parts of the others wait until they are asked for with the very same tensor. Whatever the
    order, each part is right: where none waits, all are computed anew.
    """

    def __init__(self, linears: Sequence[nn.Linear]) -> None:
        """Copies their weights."""
        super().__init__()
        self.linear = join_linears(linears)
        self._sizes = [linear.out_features for linear in linears]
        self._inputs: torch.Tensor | None = None
        self._waiting: dict[int, torch.Tensor] = {}

    @property
    def is_idle(self) -> bool:
        """Whether it keeps neither an input nor a part."""
        return self._inputs is None and not self._waiting

    def part(self, index: int, inputs: torch.Tensor) -> torch.Tensor:
        """Returns what one of the layers computes, [*, I] -> [*, O]."""
        if inputs is not self._inputs or index not in self._waiting:
            self._waiting.clear()  # before the next product takes memory
            outputs = self.linear(inputs).split(self._sizes, dim=-1)
            self._inputs, self._waiting = inputs, dict(enumerate(outputs))
        part = self._waiting.pop(index)
        if not self._waiting:
            self._inputs = None
        return part


class ProjectionPart(nn.Module):
    """Stands in the place of one of the layers that a `JoinedProjection` computes."""

    def __init__(self, joined: JoinedProjection, index: int) -> None:
        super().__init__()
        self.joined = joined
        self._index = index

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """[*, I] -> [*, O]."""
        return self.joined.part(self._index, inputs)


def join_projections(layers: Sequence[AttentionLayer], run: Callable[[], object]) -> int:
    """Joins the projections of attention modules, in place, and returns how many there are.

    While the model runs, each module is called once more with its projections joined. Where it
    says something else, fails, or leaves a part, it stays as it is.

    Args:
        layers: Those of the model, bound to their caches when it runs.
        run: Runs a few tokens through the model, in inference mode.
    """
    modules = [layer.module for layer in layers if joinable_linears(layer.module, _NAMES)]
    handles = [module.register_forward_hook(_try_to_join, with_kwargs=True) for module in modules]
    try:
        run()
    finally:
        for handle in handles:
            handle.remove()
    return sum(isinstance(module.get_submodule(_NAMES[0]), ProjectionPart) for module in modules)


def _try_to_join(
    module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: object
) -> None:
    linears = joinable_linears(module, _NAMES)
    if linears is None:
        return
    joined = JoinedProjection(linears)
    for index, name in enumerate(_NAMES):
        module.set_submodule(name, ProjectionPart(joined, index))
    try:
        actual = _attended(module.forward(*args, **kwargs))
        is_same = joined.is_idle and agrees(actual, _attended(output))
    except (AttributeError, TypeError, RuntimeError) as error:
        _logger.info("%s fails with joined projections: %s", type(module).__name__, error)
        is_same = False
    if not is_same:
        for name, linear in zip(_NAMES, linears, strict=True):
            module.set_submodule(name, linear)


def _attended(output: Any) -> torch.Tensor:
    """The hidden states in what an attention module returns, alone or with its weights."""
    hidden: torch.Tensor = output if isinstance(output, torch.Tensor) else output[0]
    return hidden
