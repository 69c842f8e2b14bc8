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
    ) -> None:
        self._pending_tokens = PendingTokens(num_steps_in_flight)
        self._model = model
        self._current_step = current_step
        self._block_size = block_size
        self._device = device

    def execute(self, step: SchedulerOutput) -> StepResult:
        """Runs one forward pass and chooses the token of each request that is due one."""
        start = time.perf_counter()
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
            modelled = time.perf_counter()
            token_ids = sample(logits, batch.sampling)
        chosen = dict(zip(batch.sampled_request_ids, token_ids, strict=True))
        self._pending_tokens.remember(step, chosen)
        sampled = time.perf_counter()
        return StepResult(
            token_ids=chosen,
            model_seconds=modelled - start,
            sample_seconds=sampled - modelled,
        )
