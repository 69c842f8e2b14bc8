"""What an attention layer asks for beside queries, keys and values."""

from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass(frozen=True, slots=True, kw_only=True)
class AttentionParams:
    """The variant of causal attention that a layer computes.

    Attributes:
        scaling: Factor on the scores.
        sliding_window: Most keys that a query sees, itself among them; None for all.
        softcap: Scores s become softcap * tanh(s / softcap); None for none.
        sinks: [H] float32, one score for each head that takes part in the softmax without a
            value, or None.
    """

    scaling: float
    sliding_window: int | None = None
    softcap: float | None = None
    sinks: torch.Tensor | None = None
