"""Attention modules that turn queries and keys by their positions in one kernel.

Their forward pass stays transformers' own code; it finds another function of the name that it
calls. Nothing of the library itself is changed, nor other modules of the class.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from types import FunctionType
from typing import Any

import torch
from torch import nn

from furiosa_llm.modeling.gpu.layer_kernels import LayerKernels, worst_row
from furiosa_llm.modeling.paged_attention import AttentionLayer

_logger = logging.getLogger(__name__)

_NAME = "apply_rotary_pos_emb"
_NUM_ARGUMENTS = 4


class OneKernelRotary:
    """Rotary position embedding (Su et al. 2021) in place of a function of transformers.

    The first call is done by that function, and shows whether the kernel says the same.
    """

    def __init__(self, plain: Callable[..., Any], kernels: LayerKernels) -> None:
        """Takes the function, which is called as plain(query, key, cos, sin)."""
        self._plain = plain
        self._kernels = kernels
        self._is_tried = False
        self._halves: bool | None = None

    @property
    def is_used(self) -> bool:
        """Whether the kernel has been tried and says the same."""
        return self._halves is not None

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """[1, H, T, D] and [1, K, T, D], with cosines and sines [1, T, *], to the same shapes."""
        if kwargs or len(args) != _NUM_ARGUMENTS:
            return self._plain(*args, **kwargs)
        if not self._is_tried:
            self._is_tried = True
            expected = self._plain(*args)
            self._halves = next(
                (way for way in (False, True) if self._agrees(way, args, expected)), None
            )
            return expected
        rotated = None
        if self._halves is not None:
            rotated = self._kernels.rotate(*args, halves=self._halves)
        return self._plain(*args) if rotated is None else rotated

    def _agrees(self, halves: bool, args: tuple[Any, ...], expected: Any) -> bool:
        try:
            rotated = self._kernels.rotate(*args, halves=halves)
            if rotated is None:
                return False
            errors = [worst_row(actual, own) for actual, own in zip(rotated, expected, strict=True)]
        except (AttributeError, RuntimeError, TypeError, ValueError) as error:
            _logger.info("%s is not done in one kernel: %s", _NAME, error)
            return False
        return max(errors) <= 1.0


@torch.inference_mode()
def swap_rotaries(
    layers: Sequence[AttentionLayer], kernels: LayerKernels, run: Callable[[], object]
) -> int:
    """Lets attention modules use the kernel, in place, and returns how many do.

    Args:
        layers: Those of the model, bound to their caches when it runs.
        kernels: What to use where it says the same.
        run: Runs a few tokens through the model, not all of them at position 0.
    """
    classes = {layer.module: type(layer.module) for layer in layers}
    given = {module: _give(module, kernels) for module in classes}
    try:
        run()
    finally:
        used = {module for module, rotary in given.items() if rotary is not None and rotary.is_used}
        for module in classes.keys() - used:
            module.__class__ = classes[module]
    return len(used)


def _give(module: nn.Module, kernels: LayerKernels) -> OneKernelRotary | None:
    """Gives a module a class of its own, unless its forward pass does not call the function.

    A class does not refer to its instances, as a forward pass bound to the module would: then the
    weights of a model that is dropped would wait for Python to look for cycles.
    """
    own_class = type(module)
    forward = own_class.forward
    if not isinstance(forward, FunctionType) or "forward" in vars(module):
        return None
    plain = forward.__globals__.get(_NAME)
    if _NAME not in forward.__code__.co_names or not callable(plain):
        return None
    rotary = OneKernelRotary(plain, kernels)
    own_forward = FunctionType(
        forward.__code__,
        {**forward.__globals__, _NAME: rotary},
        forward.__name__,
        forward.__defaults__,
        forward.__closure__,
    )
    own_forward.__kwdefaults__ = forward.__kwdefaults__
    own_forward.__qualname__ = forward.__qualname__
    members = {"__module__": own_class.__module__, "forward": own_forward}
    module.__class__ = type(own_class.__name__, (own_class,), members)
    return rotary
