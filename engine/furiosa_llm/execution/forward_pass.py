"""One call of a model whose layers are bound to their caches."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from furiosa_llm.execution.input_batch import InputBatch
from furiosa_llm.modeling.paged_attention import CurrentStep


@dataclass(frozen=True, slots=True)
class ForwardPass:
    """Calls the whole model, or the last stage of its pipeline.

    Attributes:
        model: What is called.
        current_step: What its layers look at.
    """

    model: torch.nn.Module
    current_step: CurrentStep

    def __call__(self, batch: InputBatch) -> torch.Tensor:
        """Returns the logits that the batch asks for, [S + P, V]."""
        self.current_step.layout = batch.layout
        logits: torch.Tensor = self.model(
            input_ids=batch.input_ids[None],
            position_ids=batch.positions[None],
            use_cache=False,
            logits_to_keep=batch.logits_indices,
        ).logits[0]
        return logits
