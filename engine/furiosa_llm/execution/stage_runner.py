"""Runs a step on a pipeline stage that is not the last."""

from __future__ import annotations

import torch

from furiosa_llm.execution.block_tables import BlockTables
from furiosa_llm.execution.current_device import current_device
from furiosa_llm.execution.input_batch import InputBatch
from furiosa_llm.execution.step_queue import FinishedStep
from furiosa_llm.execution.stopwatches import HostStopwatch
from furiosa_llm.modeling.paged_attention import CurrentStep
from furiosa_llm.modeling.pipeline_split import PipelineStage
from furiosa_llm.scheduler_output import SchedulerOutput, StepResult


class StageRunner:
    """Runs the layers of a stage, whose last one is followed by a module that sends.

    It chooses no token, and goes on to the next step while a later stage still runs this one.
    """

    def __init__(
        self,
        base_model: torch.nn.Module,
        current_step: CurrentStep,
        *,
        stage: PipelineStage,
        block_size: int,
        device: torch.device,
    ) -> None:
        self._base_model = base_model
        self._stage = stage
        self._current_step = current_step
        self._block_size = block_size
        self._device = device
        self._block_tables = BlockTables()

    def launch(self, step: SchedulerOutput) -> FinishedStep:
        """Runs this stage's share of one forward pass."""
        watch = HostStopwatch(self._stage)
        with torch.inference_mode(), current_device(self._device):
            batch = InputBatch.build(
                step, self._block_tables, block_size=self._block_size, device=self._device
            )
            self._current_step.layout = batch.layout
            self._base_model(
                input_ids=batch.input_ids[None],
                position_ids=batch.positions[None],
                use_cache=False,
            )
        watch.lap()
        (model_seconds,) = watch.wait()
        return FinishedStep(StepResult(token_ids={}, model_seconds=model_seconds))
