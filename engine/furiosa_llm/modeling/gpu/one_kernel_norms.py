"""Norms of a model, each in one kernel.

They keep the names of their weights. Which form of norm a module is, is found out with a few rows.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any, Self

import torch
from torch import nn

from furiosa_llm.modeling.gpu.layer_kernels import LayerKernels, worst_row

_logger = logging.getLogger(__name__)

_SCALES = (1.0, 30.0, 1e-3, 0.0)  # of tried rows; where they are small, epsilon matters
_FORMS = tuple(
    (adds_one, rounds_first) for adds_one in (False, True) for rounds_first in (True, False)
)


class OneKernelNorm(nn.Module):
    """Root mean square normalisation (Zhang and Sennrich 2019), with the weights of a module."""

    def __init__(
        self,
        plain: Callable[..., torch.Tensor],
        kernels: LayerKernels,
        weight: torch.Tensor,
        epsilon: float,
        *,
        adds_one: bool,
        rounds_first: bool,
    ) -> None:
        """Takes what the kernels know, and the norm for what they do not serve."""
        super().__init__()
        self.weight = weight  # [I]
        self.variance_epsilon = epsilon
        self._plain = plain
        self._kernels = kernels
        self._adds_one, self._rounds_first = adds_one, rounds_first

    @classmethod
    def of(cls, module: nn.Module, kernels: LayerKernels) -> Self | None:
        """Returns what says the same as a norm of transformers; None if there is no such thing."""
        weight = getattr(module, "weight", None)
        epsilon = getattr(module, "variance_epsilon", getattr(module, "eps", None))
        if not (type(module).__name__.endswith("RMSNorm") and isinstance(epsilon, float)):
            return None
        if not isinstance(weight, torch.Tensor) or weight.ndim != 1:
            return None
        candidates = [
            cls(
                module.forward,
                kernels,
                weight,
                epsilon,
                adds_one=adds_one,
                rounds_first=rounds_first,
            )
            for adds_one, rounds_first in _FORMS
        ]
        rows = _rows_for(weight)
        try:
            expected = module(rows)
            found = [candidate._normalized(rows) for candidate in candidates]
        except (RuntimeError, TypeError, ValueError) as error:
            _logger.info("%s stays as it is: %s", type(module).__name__, error)
            return None
        if not isinstance(expected, torch.Tensor):
            return None
        errors = [worst_row(actual, expected) for actual in found]
        best = min(range(len(errors)), key=errors.__getitem__)
        return candidates[best] if errors[best] <= 1.0 else None

    def forward(self, inputs: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        """[*, I] -> [*, I]. What the kernel does not serve is done as before."""
        output = None if args or kwargs else self._normalized(inputs)
        if output is None:
            output = self._plain(inputs, *args, **kwargs)
        return output

    def _normalized(self, inputs: torch.Tensor) -> torch.Tensor | None:
        return self._kernels.normalize(
            inputs,
            self.weight,
            self.variance_epsilon,
            adds_one=self._adds_one,
            rounds_first=self._rounds_first,
        )


@torch.inference_mode()
def swap_norms(model: nn.Module, kernels: LayerKernels) -> int:
    """Replaces norms of a model, in place, and returns how many.

    One whose replacement says something else about a few rows stays as it is.
    """
    num_swapped = 0
    for name, module in list(model.named_modules()):
        swapped = OneKernelNorm.of(module, kernels) if name else None
        if swapped is not None:
            model.set_submodule(name, swapped)
            num_swapped += 1
    return num_swapped


def _rows_for(weight: torch.Tensor) -> torch.Tensor:
    """Returns inputs that a norm can be tried with, [R, I], the same ones each time."""
    generator = torch.Generator().manual_seed(0)
    drawn = torch.randn(len(_SCALES), len(weight), generator=generator)
    rows = drawn * torch.tensor(_SCALES)[:, None]
    return rows.to(device=weight.device, dtype=weight.dtype)
