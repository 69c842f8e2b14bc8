"""Runs a step on one device.

What it needs of a request is in the step, and in the tokens that the last steps chose.
"""

from __future__ import annotations

import dataclasses
import time

import torch

from furiosa_llm.execution.current_device import current_device
from furiosa_llm.execution.decode_graphs import DecodeGraphs
from furiosa_llm.execution.forward_pass import ForwardPass
from furiosa_llm.execution.input_batch import InputBatch
from furiosa_llm.execution.pending_tokens import PendingTokens
from furiosa_llm.execution.token_chooser import TokenChooser
from furiosa_llm.modeling.pipeline_split import PipelineStage
from furiosa_llm.scheduler_output import SchedulerOutput, StepResult


class ModelRunner:
    """Turns a step into tensors, runs the model, and brings the new tokens back."""

    def __init__(
        self,
        forward: ForwardPass,
        chooser: TokenChooser,
        *,
        block_size: int,
        num_steps_in_flight: int,
        device: torch.device,
        stage: PipelineStage | None = None,
        graphs: DecodeGraphs | None = None,
    ) -> None:
        """Takes a model whose layers are bound to their caches.

        Args:
            forward: Calls the model.
            chooser: What makes tokens of logits.
            block_size: Tokens in a block.
            num_steps_in_flight: Steps that may have been scheduled before one was run.
            device: Where the model is.
            stage: The stage, where there are several.
            graphs: What replays decodes, if they are recorded.
        """
        self._graphs = graphs
        self._stage = stage
        self._pending_tokens = PendingTokens(num_steps_in_flight)
        self._forward = forward
        self._chooser = chooser
        self._block_size = block_size
        self._device = device

    def execute(self, step: SchedulerOutput) -> StepResult:
        """Runs one forward pass and chooses the token of each request that is due one."""
        start = time.perf_counter() - self._waited_seconds
        step = self._pending_tokens.fill_in(step)
        with torch.inference_mode(), current_device(self._device):
            batch, logits = self._run(step)
            modelled = time.perf_counter() - self._waited_seconds
            result = self._chooser.choose(logits, batch).read()
        self._pending_tokens.remember(step, result.token_ids)
        sampled = time.perf_counter() - self._waited_seconds
        return dataclasses.replace(
            result, model_seconds=modelled - start, sample_seconds=sampled - modelled
        )

    def _run(self, step: SchedulerOutput) -> tuple[InputBatch, torch.Tensor]:
        """Returns the batch and its logits, [S + P, V]."""
        replayed = None if self._graphs is None else self._graphs.run(step, self._forward)
        if replayed is not None:
            return replayed
        batch = InputBatch.build(step, block_size=self._block_size, device=self._device)
        return batch, self._forward(batch)

    @property
    def _waited_seconds(self) -> float:
        """Time spent waiting for the stage before, which is none of this one's work."""
        return 0.0 if self._stage is None else self._stage.waited_seconds
