"""Loads a model and its KV cache onto this machine, ready to run steps."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import torch

from furiosa_llm.config import CacheConfig, EngineArgs
from furiosa_llm.engine_limits import EngineLimits
from furiosa_llm.errors import ConfigError
from furiosa_llm.execution import kv_cache
from furiosa_llm.execution.model_runner import ModelRunner
from furiosa_llm.execution.step_queue import SerialExecutor, ThreadedExecutor
from furiosa_llm.modeling import paged_attention
from furiosa_llm.modeling.attention_cpu import CpuAttention
from furiosa_llm.modeling.loader import load_model
from furiosa_llm.modeling.paged_attention import CurrentStep
from furiosa_llm.scheduler_config import SchedulerConfig

# Below this, threads wait for each other longer than they work: on two cores, 10,000 rows of
# a model of 0.8 million parameters take as long with one thread as with two, and many times longer
# with two when another process wants a core.
MIN_PARAMETERS_FOR_THREADS = 10_000_000

_DTYPES = {
    "auto": torch.float32,
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class LocalExecutor:
    """A model on this machine, and what the engine has to know of it."""

    executor: SerialExecutor | ThreadedExecutor
    limits: EngineLimits


def load_local_executor(args: EngineArgs) -> LocalExecutor:
    """Loads the model of `args`, decides the size of its KV cache, and joins the two.

    Raises:
        ModelLoadError: The checkpoint is missing, damaged or not supported.
        ConfigError: An option does not go with the model or the memory.
    """
    device = torch.device("cpu")
    loaded = load_model(
        args.model, dtype=_DTYPES[args.dtype], trust_remote_code=args.trust_remote_code
    )
    max_model_len = args.max_model_len or loaded.info.max_model_len
    if max_model_len > loaded.info.max_model_len:
        raise ConfigError(
            f"max_model_len ({max_model_len}) exceeds the model's own limit of "
            f"{loaded.info.max_model_len} tokens"
        )
    shapes = [layer.shape for layer in loaded.layers]
    cache_config = CacheConfig(
        num_blocks=kv_cache.choose_num_blocks(
            args,
            shapes,
            max_model_len=max_model_len,
            available_bytes=kv_cache.available_memory_bytes(),
        ),
        block_size=args.paged_attention_block_size,
        enable_prefix_caching=args.enable_prefix_caching,
    )
    caches = kv_cache.allocate(
        shapes,
        num_blocks=cache_config.num_blocks,
        block_size=cache_config.block_size,
        device=device,
    )
    current_step = CurrentStep()
    if loaded.num_parameters < MIN_PARAMETERS_FOR_THREADS:
        torch.set_num_threads(1)
    backend = CpuAttention(num_threads=torch.get_num_threads())
    paged_attention.bind(loaded.layers, caches, current_step, backend)
    scheduler_config = SchedulerConfig.from_engine_args(args)
    runner = ModelRunner(
        loaded.model,
        current_step,
        block_size=cache_config.block_size,
        num_steps_in_flight=scheduler_config.npu_queue_limit,
        device=device,
    )
    is_serial = scheduler_config.npu_queue_limit == 1
    return LocalExecutor(
        executor=SerialExecutor(runner) if is_serial else ThreadedExecutor(runner),
        limits=EngineLimits(
            scheduler_config=scheduler_config,
            cache_config=cache_config,
            model_info=dataclasses.replace(loaded.info, max_model_len=max_model_len),
        ),
    )
