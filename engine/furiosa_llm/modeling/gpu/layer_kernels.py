"""What lies between the products of a decoder layer, each in one kernel: where a GPU has them.

A decode of a small model is bound by how many kernels it starts. What uses these does so where a
trial with a few rows agrees with the module that it replaces, and stays as it is elsewhere.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal, Protocol

import torch
from torch.nn import functional

from furiosa_llm.modeling.gpu.token_cache import TokenCache

GateKind = Literal["silu", "gelu", "gelu_tanh"]

# Of the norm of a row. Results may be rounded once less than those of transformers.
_TOLERANCES = {torch.bfloat16: 1e-2, torch.float16: 2e-3, torch.float32: 1e-5}

_GATES: dict[GateKind, Callable[[torch.Tensor], torch.Tensor]] = {
    "silu": functional.silu,
    "gelu": functional.gelu,
    "gelu_tanh": lambda numbers: functional.gelu(numbers, approximate="tanh"),
}
_LARGEST_GATE = 12.0
_GATE_TOLERANCE = 1e-6


class LayerKernels(Protocol):
    """Each of them says None, or False, to sizes and types that it does not serve.

    The host waits for none of them. They raise RuntimeError if they cannot be compiled.
    """

    def normalize(
        self,
        inputs: torch.Tensor,
        weight: torch.Tensor,
        epsilon: float,
        *,
        adds_one: bool,
        rounds_first: bool,
    ) -> torch.Tensor | None:
        """Root mean square normalisation of rows, [*, I] -> [*, I].

        Args:
            inputs: Rows of any strides.
            weight: Of the type of the inputs, [I].
            epsilon: Added to the mean square.
            adds_one: Whether weights are what one is added to.
            rounds_first: Whether rows are rounded to their type before they are weighed too.
        """

    def gate(self, product: torch.Tensor, kind: GateKind) -> torch.Tensor | None:
        """activation(gate) * up, [*, 2 I] -> [*, I]; gates come first."""

    def rotate(
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        cos: torch.Tensor,
        sin: torch.Tensor,
        *,
        halves: bool,
    ) -> tuple[torch.Tensor, torch.Tensor] | None:
        """Rotary position embedding of queries [1, H, T, D] and keys [1, K, T, D].

        What it returns lies token by token, as attention reads it.

        Args:
            query: Of any strides but the last.
            key: Likewise.
            cos: For the first numbers of each head, [1, T, N]; or for the first of each pair.
            sin: Likewise.
            halves: Whether `cos` and `sin` are for the first of each pair alone.
        """

    def store(
        self, cache: TokenCache, slot_mapping: torch.Tensor, key: torch.Tensor, value: torch.Tensor
    ) -> bool:
        """Writes keys [T, K, D] and values [T, K, E] to the slots [T]. False: it has not."""


def gate_kind_of(activation: Callable[[torch.Tensor], torch.Tensor]) -> GateKind | None:
    """Returns which activation this is, by what it says about some numbers; None if another."""
    numbers = torch.linspace(-_LARGEST_GATE, _LARGEST_GATE, 481)
    try:
        actual = activation(numbers)
    except (RuntimeError, TypeError, ValueError):
        return None
    if actual.shape != numbers.shape:
        return None
    for kind, gate in _GATES.items():
        if bool((actual - gate(numbers)).abs().max() <= _GATE_TOLERANCE):
            return kind
    return None


def worst_row(actual: object, expected: torch.Tensor) -> float:
    """Returns how far rows [*, I] are off, by share of their norms; infinity for what is no match.

    That of the tolerance counts as one.
    """
    if not isinstance(actual, torch.Tensor) or expected.dtype not in _TOLERANCES:
        return math.inf
    if actual.shape != expected.shape or actual.dtype != expected.dtype:
        return math.inf
    difference = (actual.float() - expected.float()).norm(dim=-1)
    norms = expected.float().norm(dim=-1).clamp(min=torch.finfo(torch.float32).tiny)
    share = float((difference / norms).max()) / _TOLERANCES[expected.dtype]
    return share if math.isfinite(share) else math.inf
