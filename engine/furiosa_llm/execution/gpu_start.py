"""What a GPU needs before its first step: weights in its memory, blocks, graphs.

Written and tested on a CPU; not yet measured on a GPU.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch

from furiosa_llm.artifact.reading import is_artifact, read_artifact
from furiosa_llm.config import EngineArgs
from furiosa_llm.engine_limits import CacheConfig
from furiosa_llm.errors import ConfigError
from furiosa_llm.execution import gpu_memory
from furiosa_llm.execution.decode_graphs import DecodeGraphs, DecodeShape, default_shapes
from furiosa_llm.execution.gpu_device import GpuDevice
from furiosa_llm.execution.step_queue import StepRunner
from furiosa_llm.execution.token_caches import block_bytes
from furiosa_llm.modeling.gpu.joined_mlp import join_mlps
from furiosa_llm.modeling.gpu.joined_projections import join_projections
from furiosa_llm.modeling.gpu.layer_kernels import LayerKernels
from furiosa_llm.modeling.gpu.one_kernel_norms import swap_norms
from furiosa_llm.modeling.gpu.one_kernel_rotary import swap_rotaries
from furiosa_llm.modeling.loader import LoadedModel
from furiosa_llm.sampling_params import SamplingParams
from furiosa_llm.scheduler_config import SchedulerConfig
from furiosa_llm.scheduler_output import (
    NO_COUNTS,
    SamplingInputs,
    ScheduledRequest,
    SchedulerOutput,
)

_FEW_TOKENS = SchedulerOutput(
    requests=(
        ScheduledRequest(
            request_id=0,
            token_ids=(3, 4, 5, 6),
            start_position=0,
            block_ids=(0,),
            sampling=SamplingInputs(
                params=SamplingParams(temperature=0.0, max_tokens=1), seed=0, position=0
            ),
        ),
    ),
    counts=NO_COUNTS,
)


def move_to_gpu(model: torch.nn.Module, gpu: GpuDevice) -> None:
    """Copies the weights of a model to a GPU.

    Raises:
        ConfigError: They do not fit.
    """
    weights = {tensor.data_ptr(): tensor.nbytes for tensor in model.parameters()}  # tied ones once
    gpu_memory.require_room_for_weights(sum(weights.values()), gpu.memory)
    try:
        model.to(gpu.device)
    except torch.OutOfMemoryError as error:
        raise ConfigError(
            f"the weights do not fit in the memory of {gpu.device}, where other programs may have "
            "taken some meanwhile; free some, or give more GPUs with --tensor-parallel-size"
        ) from error


def use_fewer_kernels(
    loaded: LoadedModel,
    make_trial_runner: Callable[[], StepRunner],
    layer_kernels: LayerKernels | None,
) -> None:
    """Lets linear layers of one input be one product, and what lies between products one kernel.

    That is done where trials agree.

    Args:
        loaded: The model, on the GPU.
        make_trial_runner: Makes what runs the model with a cache of one block.
        layer_kernels: Those of what lies between products, if the GPU has any.
    """

    def run() -> None:
        make_trial_runner().launch(_FEW_TOKENS).result()

    join_mlps(loaded.model, layer_kernels)
    join_projections(loaded.layers, run)
    if layer_kernels is not None:
        swap_norms(loaded.model, layer_kernels)
        swap_rotaries(loaded.layers, layer_kernels, run)


def choose_num_blocks(
    args: EngineArgs,
    loaded: LoadedModel,
    make_trial_runner: Callable[[], StepRunner],
    *,
    max_model_len: int,
    gpu: GpuDevice,
    is_alone: bool,
) -> int:
    """Runs the largest step and returns how many KV-cache blocks fit beside it.

    Args:
        args: What was asked for.
        loaded: The model, on the GPU.
        make_trial_runner: Makes what runs the model with a cache of one block.
        max_model_len: Longest sequence.
        gpu: The GPU.
        is_alone: Whether the GPU has the whole model.

    Raises:
        ConfigError: The step, or the blocks asked for, or a single block, does not fit.
    """
    config = SchedulerConfig.from_engine_args(args)
    runner = make_trial_runner()
    use = gpu_memory.measure(
        lambda step: runner.launch(step).result(),
        gpu.memory,
        config,
        max_model_len=max_model_len,
        is_alone=is_alone,
    )
    return gpu_memory.choose_num_blocks(
        args,
        use,
        block_bytes=block_bytes(
            [layer.shape for layer in loaded.layers],
            block_size=args.paged_attention_block_size,
            dtype=loaded.model.dtype,
        ),
        max_model_len=max_model_len,
        max_num_seqs=config.max_num_seqs,
    )


def decode_shapes(args: EngineArgs, *, max_model_len: int) -> tuple[DecodeShape, ...]:
    """Returns the shapes of the artifact's decode buckets, else those that cover every decode."""
    folder = Path(args.model)
    buckets = read_artifact(folder).runtime.decode_buckets if is_artifact(folder) else ()
    if buckets:
        return tuple(DecodeShape(bucket.batch_size, bucket.length) for bucket in buckets)
    config = SchedulerConfig.from_engine_args(args)
    return tuple(default_shapes(max_num_seqs=config.max_num_seqs, max_model_len=max_model_len))


def decode_graphs(
    shapes: tuple[DecodeShape, ...], gpu: GpuDevice, cache_config: CacheConfig
) -> DecodeGraphs | None:
    """Returns what records decodes of these shapes; None if there are none.

    The block after those that the scheduler knows of takes what rows in excess write.
    """
    if not shapes:
        return None
    return DecodeGraphs(
        gpu.recorder,
        shapes,
        block_size=cache_config.block_size,
        scratch_block=cache_config.num_blocks,
        device=gpu.device,
    )
