"""Loads one rank's part of a model."""

from __future__ import annotations

from furiosa_llm.config import EngineArgs
from furiosa_llm.execution import kv_cache
from furiosa_llm.execution.gpu_device import GpuDevice
from furiosa_llm.execution.model_options import (
    choose_max_model_len,
    dtype_of,
    refuse_unserved_options,
)
from furiosa_llm.execution.prepared_model import PreparedModel, prepare_on_gpu
from furiosa_llm.execution.rank_group import RankGroup
from furiosa_llm.memory_limits import free_memory_bytes
from furiosa_llm.modeling.loader import load_model
from furiosa_llm.modeling.model_split import ModelSplit
from furiosa_llm.scheduler_config import SchedulerConfig


def prepare_rank(args: EngineArgs, group: RankGroup, *, num_replicas: int = 1) -> PreparedModel:
    """Loads this rank's part of the model of `args`. All ranks of the group have to call it.

    Its runner runs steps as that of a whole model does, when every rank of the group is given the
    same steps in the same order. Only ranks of the last stage return tokens, all of them the same
    ones.

    Raises:
        ModelLoadError: The checkpoint is missing, damaged or not supported.
        ConfigError: An option does not go with the model or the memory, or the model cannot be
            split in such a way.
        RuntimeError: Another rank failed or did not answer in time.
    """
    place = group.place
    refuse_unserved_options(args, group.device, is_split=True)
    scheduler_config = SchedulerConfig.from_engine_args(args)  # before minutes of loading
    loaded = load_model(
        args.model,
        dtype=dtype_of(args, group.device),
        trust_remote_code=args.trust_remote_code,
        allow_pickle=args.allow_pickle,
        split=ModelSplit(
            pipeline_rank=place.pipeline_rank,
            pipeline_parallel_size=place.pipeline_parallel_size,
            tensor_group=group.tensor_ranks,
        ),
    )
    if loaded.stage is not None:
        loaded.stage.connect(group.link)
    if group.device.type != "cpu":
        gpu = GpuDevice.of(group.device)
        prepared = prepare_on_gpu(args, loaded, gpu, is_alone=False)
        num_blocks = group.smallest(prepared.limits.cache_config.num_blocks)
        return PreparedModel.of(
            args,
            loaded,
            max_model_len=prepared.limits.model_info.max_model_len,
            num_blocks=num_blocks,
            device=group.device,
            gpu=gpu,
        )
    max_model_len = choose_max_model_len(args, loaded)
    group.smallest(0)  # once all have come here, what is free is what is left for the caches
    num_sharing = place.num_ranks * num_replicas
    num_blocks = kv_cache.choose_num_blocks(
        args,
        [layer.shape for layer in loaded.layers],
        dtype=loaded.cache_dtype,
        max_model_len=max_model_len,
        max_num_seqs=scheduler_config.max_num_seqs,
        available_bytes=free_memory_bytes() // num_sharing,
    )
    return PreparedModel.of(
        args,
        loaded,
        max_model_len=max_model_len,
        num_blocks=group.smallest(num_blocks),
        device=group.device,
    )
