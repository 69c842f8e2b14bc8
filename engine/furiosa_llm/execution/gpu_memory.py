"""How many KV-cache blocks a GPU holds beside the model and what its largest step computes."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch

from furiosa_llm.config import DEFAULT_GPU_MEMORY_UTILIZATION, EngineArgs
from furiosa_llm.errors import ConfigError
from furiosa_llm.memory_limits import gib
from furiosa_llm.sampling_params import SamplingParams
from furiosa_llm.scheduler_config import SchedulerConfig
from furiosa_llm.scheduler_output import (
    NO_COUNTS,
    SamplingInputs,
    ScheduledRequest,
    SchedulerOutput,
    StepResult,
)

_logger = logging.getLogger(__name__)

# Draws among all tokens in order of their probability take the most memory.
_COSTLY = SamplingInputs(
    params=SamplingParams(temperature=1.0, top_p=0.9, max_tokens=1), seed=0, position=0
)
_ANY_BLOCK = 0


class MemoryReader(Protocol):
    """What tells of a device's memory, in bytes. Tests replace it with a few lines."""

    def total(self) -> int:
        """Returns what the device has."""

    def free(self) -> int:
        """Returns what no process holds, this one's unused reserve given back before."""

    def allocated(self) -> int:
        """Returns what this process uses."""

    def forget_peak(self) -> None:
        """Starts to note the peak anew."""

    def peak(self) -> int:
        """Returns the most that this process used since."""


class CudaMemory:
    """Reads the memory of a GPU. See `MemoryReader`."""

    def __init__(self, device: torch.device) -> None:
        self._device = device

    def total(self) -> int:
        """See there."""
        return torch.cuda.mem_get_info(self._device)[1]

    def free(self) -> int:
        """See there."""
        torch.cuda.synchronize(self._device)
        torch.cuda.empty_cache()
        return torch.cuda.mem_get_info(self._device)[0]

    def allocated(self) -> int:
        """See there."""
        return torch.cuda.memory_allocated(self._device)

    def forget_peak(self) -> None:
        """See there."""
        torch.cuda.reset_peak_memory_stats(self._device)

    def peak(self) -> int:
        """See there."""
        torch.cuda.synchronize(self._device)
        return torch.cuda.max_memory_allocated(self._device)


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryUse:
    """What of a device's memory is taken, in bytes.

    Attributes:
        total: What there is.
        held: By the weights, and by whatever else is on the device.
        step: By what the largest step computes, at most.
    """

    total: int
    held: int
    step: int

    def left_within(self, share: float) -> int:
        """Returns what is left for the KV cache of a share of the memory; never less than 0."""
        return max(int(self.total * share) - self.held - self.step, 0)


def largest_step(
    config: SchedulerConfig, *, num_tokens: int, max_model_len: int
) -> SchedulerOutput:
    """Returns a step of so many tokens, of as many requests as may run, all in one block."""
    num_requests = min(config.max_num_seqs, num_tokens)
    length = min(-(-num_tokens // num_requests), max_model_len)
    share = ScheduledRequest(
        request_id=_ANY_BLOCK,
        token_ids=(0,) * length,
        start_position=0,
        block_ids=(_ANY_BLOCK,) * length,  # more than enough
        sampling=_COSTLY,
    )
    return SchedulerOutput(requests=(share,) * num_requests, counts=NO_COUNTS)


def measure(
    run: Callable[[SchedulerOutput], StepResult],
    memory: MemoryReader,
    config: SchedulerConfig,
    *,
    max_model_len: int,
    is_alone: bool = True,
) -> MemoryUse:
    """Runs the largest step and notes what it takes.

    Args:
        run: Runs a step with a cache of one block.
        memory: Of the device, where the model is already.
        config: Says how large a step can be.
        max_model_len: Longest sequence.
        is_alone: Whether a step may be tried that other ranks do not run.

    Raises:
        ConfigError: The step does not fit.
    """
    held = memory.total() - memory.free()
    num_tokens = config.max_num_batched_tokens
    while num_tokens:
        step = largest_step(config, num_tokens=num_tokens, max_model_len=max_model_len)
        memory.forget_peak()
        at_rest = memory.allocated()
        try:
            run(step)
        except torch.OutOfMemoryError as error:
            _logger.debug("a step of %d tokens does not fit: %s", num_tokens, error)
        else:
            break
        memory.free()
        num_tokens = num_tokens // 2 if is_alone else 0
    if num_tokens < config.max_num_batched_tokens:
        fits = f"; one of {num_tokens} tokens fits" if num_tokens else ""
        raise ConfigError(
            f"a step of {config.max_num_batched_tokens} tokens of {config.max_num_seqs} requests "
            f"does not fit beside the {gib(held)} that are held of {gib(memory.total())} of GPU "
            f"memory{fits}: lower --max-num-batched-tokens or --max-num-seqs"
        )
    return MemoryUse(total=memory.total(), held=held, step=memory.peak() - at_rest)


def choose_num_blocks(
    args: EngineArgs,
    use: MemoryUse,
    *,
    block_bytes: int,
    max_model_len: int,
    max_num_seqs: int,
) -> int:
    """Returns the number given, else what the memory's share holds and the requests can use.

    Args:
        args: What was asked for.
        use: What is taken of the memory.
        block_bytes: Of one block in all layers.
        max_model_len: Longest sequence.
        max_num_seqs: Most requests that run at once.

    Raises:
        ConfigError: The memory holds fewer blocks than asked for, or not even one.
    """
    share = args.gpu_memory_utilization or DEFAULT_GPU_MEMORY_UTILIZATION
    num_fitting = use.left_within(share) // block_bytes - 1  # one more than the scheduler knows of
    where = (
        f"{share:.0%} of the GPU's {gib(use.total)} are to be used, {gib(use.held)} are held and "
        f"a step takes {gib(use.step)}"
    )
    num_given = args.paged_attention_num_blocks
    if num_given is not None:
        if num_given > num_fitting:
            raise ConfigError(
                f"paged_attention_num_blocks ({num_given}) needs {gib(num_given * block_bytes)}, "
                f"but {where}; at most {max(num_fitting, 0)} blocks fit"
            )
        return num_given
    if num_fitting < 1:
        raise ConfigError(
            f"there is no memory for KV-cache blocks of {gib(block_bytes)}: {where}; raise "
            "--gpu-memory-utilization, or lower --max-num-batched-tokens or --max-num-seqs"
        )
    num_blocks_of_longest = -(-max_model_len // args.paged_attention_block_size)
    return min(num_fitting, num_blocks_of_longest * max_num_seqs)


def require_room_for_weights(num_bytes: int, memory: MemoryReader) -> None:
    """Refuses a model that the device cannot hold, before it is copied there.

    Raises:
        ConfigError: The weights exceed what is free.
    """
    free = memory.free()
    if num_bytes > free:
        raise ConfigError(
            f"the weights take {gib(num_bytes)}, but {gib(free)} of the GPU's "
            f"{gib(memory.total())} are free; give more GPUs with --tensor-parallel-size or "
            "--pipeline-parallel-size, or a smaller --dtype"
        )
