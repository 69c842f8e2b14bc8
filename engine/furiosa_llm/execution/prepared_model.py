"""Loads a model and decides the size of its KV cache."""

from __future__ import annotations

import dataclasses
import functools
from dataclasses import dataclass

import torch

from furiosa_llm.config import CacheConfig, EngineArgs
from furiosa_llm.engine_limits import EngineLimits
from furiosa_llm.errors import ConfigError
from furiosa_llm.execution import kv_cache
from furiosa_llm.execution.forward_pass import ForwardPass
from furiosa_llm.execution.grammar_masks import GrammarMasks
from furiosa_llm.execution.grammars import Grammars
from furiosa_llm.execution.heap import keep_freed_memory
from furiosa_llm.execution.model_runner import ModelRunner
from furiosa_llm.execution.stage_runner import StageRunner
from furiosa_llm.execution.token_chooser import TokenChooser
from furiosa_llm.modeling import (
    attention_kernel,
    decoder_kernel,
    layer_kernels,
    paged_attention,
    products,
)
from furiosa_llm.modeling.attention_cpu import CpuAttention
from furiosa_llm.modeling.attention_torch import torch_attention
from furiosa_llm.modeling.core_threads import CoreThreads
from furiosa_llm.modeling.fusion import use_threads
from furiosa_llm.modeling.kernel_cache import keep_compiled
from furiosa_llm.modeling.loader import LoadedModel, load_model
from furiosa_llm.modeling.paged_attention import CurrentStep
from furiosa_llm.scheduler_config import SchedulerConfig
from furiosa_llm.tokenization import Tokenizer

_DTYPES = {
    "auto": torch.float32,
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}


KERNELS = (
    *attention_kernel.KERNELS,
    *layer_kernels.KERNELS,
    *products.KERNELS,
    *decoder_kernel.KERNELS,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class PreparedModel:
    """A model in memory, or a rank's part of one, without a KV cache.

    Processes that are forked from here share its weights.
    """

    args: EngineArgs
    loaded: LoadedModel
    limits: EngineLimits
    device: torch.device

    @classmethod
    def of(
        cls,
        args: EngineArgs,
        loaded: LoadedModel,
        *,
        max_model_len: int,
        num_blocks: int,
        device: torch.device,
    ) -> PreparedModel:
        """Joins a loaded model with what was decided for it."""
        keep_compiled(KERNELS, args.cache_dir)
        scheduler_config = SchedulerConfig.from_engine_args(args)
        if args.npu_queue_limit is None and loaded.stage is None and device.type == "cpu":
            # Preparing a step takes from the same cores as running one: see docs/parallelism.md.
            scheduler_config = dataclasses.replace(scheduler_config, npu_queue_limit=1)
        return cls(
            args=args,
            loaded=loaded,
            limits=EngineLimits(
                scheduler_config=scheduler_config,
                cache_config=CacheConfig(
                    num_blocks=num_blocks,
                    block_size=args.paged_attention_block_size,
                    enable_prefix_caching=args.enable_prefix_caching,
                ),
                model_info=dataclasses.replace(loaded.info, max_model_len=max_model_len),
            ),
            device=device,
        )

    def make_runner(self, num_threads: int | None = None) -> ModelRunner | StageRunner:
        """Reserves the KV cache and joins it with the model, ready to run steps.

        Args:
            num_threads: To compute with, torch's choice if None; one for a small model, unless
                the arguments say how many.
        """
        if self.loaded.is_small and self.args.threads_per_replica is None:
            num_threads = 1
        if num_threads is not None:
            torch.set_num_threads(num_threads)
        cache_config = self.limits.cache_config
        caches = kv_cache.allocate(
            [layer.shape for layer in self.loaded.layers],
            num_blocks=cache_config.num_blocks,
            block_size=cache_config.block_size,
            device=self.device,
        )
        current_step = CurrentStep()
        keep_freed_memory()
        threads = CoreThreads(torch.get_num_threads())
        use_threads(self.loaded.model, threads)
        backend = CpuAttention(threads) if self.device.type == "cpu" else torch_attention
        paged_attention.bind(self.loaded.layers, caches, current_step, backend)
        stage = self.loaded.stage
        if stage is not None and not stage.is_last:
            return StageRunner(
                self.loaded.model.base_model,
                current_step,
                stage=stage,
                block_size=cache_config.block_size,
                device=self.device,
            )
        return ModelRunner(
            ForwardPass(self.loaded.model, current_step),
            TokenChooser(GrammarMasks(self._grammars())),
            block_size=cache_config.block_size,
            num_steps_in_flight=self.limits.scheduler_config.npu_queue_limit,
            device=self.device,
            stage=stage,
        )

    def _grammars(self) -> Grammars:
        load_tokenizer = functools.partial(Tokenizer.from_engine_args, self.args)
        return Grammars(load_tokenizer, self.limits.model_info)


def prepare_model(args: EngineArgs, *, device: str = "cpu", num_replicas: int = 1) -> PreparedModel:
    """Loads the model of `args` and decides the size of each replica's KV cache.

    Args:
        args: What was asked for.
        device: As torch names it: `cpu`, `cuda:1`.
        num_replicas: Replicas that share the device's memory.

    Raises:
        ModelLoadError: The checkpoint is missing, damaged or not supported.
        ConfigError: An option does not go with the model or the memory.
    """
    scheduler_config = SchedulerConfig.from_engine_args(args)  # before minutes of loading
    loaded = load_model(
        args.model,
        dtype=dtype_of(args),
        trust_remote_code=args.trust_remote_code,
        allow_pickle=args.allow_pickle,
    )
    loaded.model.to(device)
    keep_compiled(KERNELS, args.cache_dir)
    if device == "cpu":
        loaded = loaded.fused(quantization=args.quantization, deterministic=args.deterministic)
    else:
        refuse_cpu_options(args, f"on {device}")
    max_model_len = choose_max_model_len(args, loaded)
    num_blocks = kv_cache.choose_num_blocks(
        args,
        [layer.shape for layer in loaded.layers],
        max_model_len=max_model_len,
        max_num_seqs=scheduler_config.max_num_seqs,
        available_bytes=kv_cache.available_memory_bytes(torch.device(device)) // num_replicas,
    )
    return PreparedModel.of(
        args,
        loaded,
        max_model_len=max_model_len,
        num_blocks=num_blocks,
        device=torch.device(device),
    )


def refuse_cpu_options(args: EngineArgs, where: str) -> None:
    """Refuses options that only a whole model on a CPU has.

    Raises:
        ConfigError: One is given.
    """
    for name, is_given in (
        ("quantization", args.quantization is not None),
        ("deterministic", args.deterministic),
    ):
        if is_given:
            raise ConfigError(
                f"{name} is not supported {where}; leave it out, or run a whole model on a CPU"
            )


def dtype_of(args: EngineArgs) -> torch.dtype:
    """Returns the type of weights and activations, of those that are not quantised."""
    return _DTYPES[args.dtype] if args.quantization is None else torch.float32


def choose_max_model_len(args: EngineArgs, loaded: LoadedModel) -> int:
    """Returns the longest prompt plus answer: as asked for, else the model's own limit.

    Raises:
        ConfigError: More was asked for than the model can do.
    """
    limit = loaded.info.max_model_len
    max_model_len = args.max_model_len or limit
    if max_model_len > limit:
        raise ConfigError(
            f"max_model_len ({max_model_len}) exceeds the model's own limit of {limit} tokens"
        )
    return max_model_len
