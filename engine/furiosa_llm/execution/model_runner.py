"""Runs a step on one device.

It keeps no request state: all it needs is in the step, and the tokens that the last steps chose.
"""

from __future__ import annotations

import time

import torch

from furiosa_llm.execution.input_batch import InputBatch
from furiosa_llm.execution.pending_tokens import PendingTokens
from furiosa_llm.execution.sampler import sample
from furiosa_llm.modeling.paged_attention import CurrentStep
from furiosa_llm.modeling.pipeline_split import PipelineStage
from furiosa_llm.scheduler_output import SchedulerOutput, StepResult


class ModelRunner:
    """Turns a step into tensors, runs the model, and brings the new tokens back."""

    def __init__(
        self,
        model: torch.nn.Module,
        current_step: CurrentStep,
        *,
        block_size: int,
        num_steps_in_flight: int,
        device: torch.device,
        stage: PipelineStage | None = None,
    ) -> None:
        """Takes a model whose layers are bound to their caches.

        Args:
            model: The whole model, or the last stage of its pipeline.
            current_step: What the layers look at.
            block_size: Tokens in a block.
            num_steps_in_flight: Steps that may have been scheduled before one was run.
            device: Where the model is.
            stage: The stage, where there are several.
        """
        self._stage = stage
        self._pending_tokens = PendingTokens(num_steps_in_flight)
        self._model = model
        self._current_step = current_step
        self._block_size = block_size
        self._device = device

    def execute(self, step: SchedulerOutput) -> StepResult:
        """Runs one forward pass and chooses the token of each request that is due one."""
        start = time.perf_counter() - self._waited_seconds
        step = self._pending_tokens.fill_in(step)
        with torch.inference_mode():
            batch = InputBatch.build(step, block_size=self._block_size, device=self._device)
            self._current_step.layout = batch.layout
            logits = self._model(
                input_ids=batch.input_ids[None],
                position_ids=batch.positions[None],
                use_cache=False,
                logits_to_keep=batch.logits_indices,
            ).logits[0]  # [S, V]
            modelled = time.perf_counter() - self._waited_seconds
            token_ids = sample(logits, batch.sampling)
        chosen = dict(zip(batch.sampled_request_ids, token_ids, strict=True))
        self._pending_tokens.remember(step, chosen)
        sampled = time.perf_counter() - self._waited_seconds
        return StepResult(
            token_ids=chosen,
            model_seconds=modelled - start,
            sample_seconds=sampled - modelled,
        )

    @property
    def _waited_seconds(self) -> float:
        """Time spent waiting for the stage before, which is none of this one's work."""
        return 0.0 if self._stage is None else self._stage.waited_seconds
