"""Loads one rank's part of a model."""

from __future__ import annotations

from furiosa_llm.config import EngineArgs
from furiosa_llm.execution import kv_cache
from furiosa_llm.execution.prepared_model import (
    PreparedModel,
    choose_max_model_len,
    dtype_of,
    refuse_cpu_options,
)
from furiosa_llm.execution.rank_group import RankGroup
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
    refuse_cpu_options(args, "with a model that is split among processes")
    scheduler_config = SchedulerConfig.from_engine_args(args)  # before minutes of loading
    loaded = load_model(
        args.model,
        dtype=dtype_of(args),
        trust_remote_code=args.trust_remote_code,
        allow_pickle=args.allow_pickle,
        split=ModelSplit(
            pipeline_rank=place.pipeline_rank,
            pipeline_parallel_size=place.pipeline_parallel_size,
            tensor_group=group.tensor_ranks,
        ),
    )
    loaded.model.to(group.device)
    if loaded.stage is not None:
        loaded.stage.connect(group.link)
    max_model_len = choose_max_model_len(args, loaded)
    group.smallest(0)  # once all have come here, what is free is what is left for the caches
    num_blocks = kv_cache.choose_num_blocks(
        args,
        [layer.shape for layer in loaded.layers],
        max_model_len=max_model_len,
        max_num_seqs=scheduler_config.max_num_seqs,
        available_bytes=_available_bytes(group) // num_replicas,
    )
    return PreparedModel.of(
        args,
        loaded,
        max_model_len=max_model_len,
        num_blocks=group.smallest(num_blocks),
        device=group.device,
    )


def _available_bytes(group: RankGroup) -> int:
    """Returns this rank's share: a GPU is its own, a machine's memory is for all ranks on it."""
    num_sharing = group.place.num_ranks if group.device.type == "cpu" else 1
    return kv_cache.available_memory_bytes(group.device) // num_sharing
