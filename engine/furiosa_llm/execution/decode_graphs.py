"""Steps in which every request has one token, recorded once and replayed.

A small model is bound by the host, which starts hundreds of kernels a step. A graph starts them all
at once, but reads and writes the same memory each time: a step is brought into the shape of a
graph by rows that belong to no request and write to a block that no request owns.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch

from furiosa_llm.execution.block_tables import BlockTables
from furiosa_llm.execution.input_batch import InputBatch
from furiosa_llm.execution.staging import PackedArrays
from furiosa_llm.execution.step_arrays import step_arrays
from furiosa_llm.scheduler_output import ScheduledRequest, SchedulerOutput

_logger = logging.getLogger(__name__)

_SMALL_BATCH_SIZES = (1, 2, 4)
_BATCH_SIZE_STEP = 8
_SHORTEST_LENGTH = 4096
_LENGTH_FACTOR = 4
_PADDING_REQUEST_ID = -1

Work = Callable[[], None]
FillIn = Callable[[torch.Tensor], None]
Forward = Callable[[InputBatch], torch.Tensor]


class GraphRecorder(Protocol):
    """A way to record what the device is told to do."""

    def record(self, work: Work) -> Work:
        """Does work that the host does not wait for, and returns what does the same again.

        Raises:
            RuntimeError: The work cannot be recorded.
        """


@dataclass(frozen=True, slots=True, order=True)
class DecodeShape:
    """What one graph serves.

    Attributes:
        batch_size: Requests in the step, at most.
        length: Tokens of each once the step is done, at most.
    """

    batch_size: int
    length: int


@dataclass(frozen=True, slots=True)
class _Graph:
    tensors: dict[str, torch.Tensor]
    buffer: torch.Tensor  # [*] uint8, what holds the tensors
    replay: Work


class DecodeGraphs:
    """Replays steps, each shape recorded when a step first has it."""

    def __init__(
        self,
        recorder: GraphRecorder,
        shapes: Sequence[DecodeShape],
        *,
        block_size: int,
        scratch_block: int,
        device: torch.device,
    ) -> None:
        """Records nothing yet.

        Args:
            recorder: Records.
            shapes: Those that steps are brought into.
            block_size: Tokens in a block.
            scratch_block: A block of the cache that the scheduler does not know of.
            device: Where the model is.
        """
        self._recorder = recorder
        self._shapes = sorted(shapes)
        self._block_size = block_size
        self._scratch_block = scratch_block
        self._device = device
        self._block_tables = BlockTables()
        self._graphs: dict[DecodeShape, _Graph] = {}
        self._logits: torch.Tensor | None = None  # [largest batch, V], which all graphs write to
        self._is_broken = False

    def run(
        self, step: SchedulerOutput, fill_in: FillIn, forward: Forward
    ) -> tuple[InputBatch, torch.Tensor] | None:
        """Runs a step, if there is a graph for it.

        Args:
            step: The step.
            fill_in: Writes the tokens that the host does not know yet into the step's [T] tokens.
            forward: Runs the model, and returns the logits of the tokens that a batch asks for.

        Returns:
            The batch, whose tensors have rows in excess, and the logits [S, V], which the next
            step overwrites; None if the step has to be run in another way.
        """
        shape = self._shape_of(step)
        if shape is None:
            return None
        requests = self._padded(step, shape).requests
        num_columns = -(-shape.length // self._block_size)
        tables = self._block_tables.of(requests, num_columns=num_columns)
        arrays = step_arrays(requests, tables, block_size=self._block_size)
        packed = PackedArrays.of(arrays, self._device)
        graph = self._graphs.get(shape)
        if graph is not None:
            graph.buffer.copy_(packed.buffer, non_blocking=True)
            fill_in(graph.tensors["input_ids"])
            graph.replay()
        else:
            graph = self._record(step, shape, packed, fill_in, forward)
            if graph is None:
                return None
        assert self._logits is not None, "a graph has written there"
        return InputBatch.of(step, graph.tensors), self._logits[: len(step.requests)]

    def _shape_of(self, step: SchedulerOutput) -> DecodeShape | None:
        """Returns the smallest shape that holds a step; None if the step is no mere decode."""
        if self._is_broken or not all(map(_is_decode, step.requests)):
            return None
        longest = max([share.start_position for share in step.requests]) + 1
        return next(
            (
                shape
                for shape in self._shapes
                if shape.batch_size >= len(step.requests) and shape.length >= longest
            ),
            None,
        )

    def _padded(self, step: SchedulerOutput, shape: DecodeShape) -> SchedulerOutput:
        padding = ScheduledRequest(
            request_id=_PADDING_REQUEST_ID,
            token_ids=(0,),
            start_position=0,
            block_ids=(self._scratch_block,),
            sampling=step.requests[0].sampling,
        )
        num_missing = shape.batch_size - len(step.requests)
        return dataclasses.replace(step, requests=step.requests + (padding,) * num_missing)

    def _record(
        self,
        step: SchedulerOutput,
        shape: DecodeShape,
        packed: PackedArrays,
        fill_in: FillIn,
        forward: Forward,
    ) -> _Graph | None:
        """Runs and records a step. Returns None where that fails, and tries no other then."""
        buffer = packed.buffer.to(self._device, copy=True)
        tensors = packed.views(buffer)
        fill_in(tensors["input_ids"])
        batch = InputBatch.of(self._padded(step, shape), tensors)

        def work() -> None:
            logits = forward(batch)
            if self._logits is None:
                self._logits = logits.new_empty(self._shapes[-1].batch_size, logits.shape[-1])
            self._logits[: len(logits)].copy_(logits)

        try:
            replay = self._recorder.record(work)
        except RuntimeError as error:
            _logger.warning("steps are not recorded as graphs, which is slower: %s", error)
            self._is_broken = True
            self._graphs.clear()
            return None
        self._graphs[shape] = _Graph(tensors, buffer, replay)
        return self._graphs[shape]


def _is_decode(share: ScheduledRequest) -> bool:
    return len(share.token_ids) == 1 and share.sampling is not None and share.scoring is None


def default_shapes(*, max_num_seqs: int, max_model_len: int) -> list[DecodeShape]:
    """Returns shapes for all decodes: 1, 2, 4, 8, 16, 24 … requests, of four times longer spans."""
    sizes = [*_SMALL_BATCH_SIZES, *range(_BATCH_SIZE_STEP, max_num_seqs, _BATCH_SIZE_STEP)]
    sizes = [size for size in sizes if size < max_num_seqs] + [max_num_seqs]
    lengths = []
    length = _SHORTEST_LENGTH
    while length < max_model_len:
        lengths.append(length)
        length *= _LENGTH_FACTOR
    return [DecodeShape(size, limit) for size in sizes for limit in [*lengths, max_model_len]]
