"""Runs steps on one device.

What it needs of a request is in the step, and in the tokens that the last steps choose.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable

import torch

from furiosa_llm.execution.block_tables import BlockTables
from furiosa_llm.execution.current_device import current_device
from furiosa_llm.execution.decode_graphs import DecodeGraphs
from furiosa_llm.execution.forward_pass import ForwardPass
from furiosa_llm.execution.input_batch import InputBatch
from furiosa_llm.execution.launched_step import LaunchedStep
from furiosa_llm.execution.pending_tokens import PendingTokens
from furiosa_llm.execution.stopwatches import HostStopwatch, Stopwatch
from furiosa_llm.execution.token_chooser import TokenChooser
from furiosa_llm.scheduler_output import SchedulerOutput


class ModelRunner:
    """Turns a step into tensors, runs the model, and chooses the new tokens."""

    def __init__(
        self,
        forward: ForwardPass,
        chooser: TokenChooser,
        *,
        block_size: int,
        num_steps_in_flight: int,
        device: torch.device,
        graphs: DecodeGraphs | None = None,
        start_watch: Callable[[], Stopwatch] = HostStopwatch,
    ) -> None:
        """Takes a model whose layers are bound to their caches.

        Args:
            forward: Calls the model.
            chooser: What makes tokens of logits.
            block_size: Tokens in a block.
            num_steps_in_flight: Steps that may have been scheduled before one was run.
            device: Where the model is.
            graphs: What replays decodes, if they are recorded.
            start_watch: Starts to time a step, on the device.
        """
        self._graphs = graphs
        self._start_watch = start_watch
        self._pending_tokens = PendingTokens(num_steps_in_flight)
        self._block_tables = BlockTables()
        self._forward = forward
        self._chooser = chooser
        self._block_size = block_size
        self._device = device

    def launch(self, step: SchedulerOutput) -> LaunchedStep:
        """Starts one forward pass and the choice of the token of each request that is due one.

        A GPU may still be busy with the steps before. It reads what the next launch overwrites, the
        logits of a graph for example, before it comes to that launch; the host never does.
        """
        with torch.inference_mode(), current_device(self._device):
            watch = self._start_watch()
            batch, logits = self._run(step)
            watch.lap()
            sampling = self._pending_tokens.sampling(step)
            chosen = self._chooser.choose(logits, dataclasses.replace(batch, sampling=sampling))
            watch.lap()
        launched = LaunchedStep(chosen, watch)
        self._pending_tokens.remember(step, launched)
        return launched

    def _run(self, step: SchedulerOutput) -> tuple[InputBatch, torch.Tensor]:
        """Returns the batch and its logits, [S + P, V]."""
        fill_in = functools.partial(self._pending_tokens.fill_in, step)
        replayed = None if self._graphs is None else self._graphs.run(step, fill_in, self._forward)
        if replayed is not None:
            return replayed
        batch = InputBatch.build(
            step, self._block_tables, block_size=self._block_size, device=self._device
        )
        fill_in(batch.input_ids)
        return batch, self._forward(batch)
