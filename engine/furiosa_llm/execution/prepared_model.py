"""Loads a model and decides the size of its KV cache."""

from __future__ import annotations

import dataclasses
import functools
from dataclasses import dataclass

import torch

from furiosa_llm.config import EngineArgs
from furiosa_llm.engine_limits import CacheConfig, EngineLimits
from furiosa_llm.execution import gpu_start, kv_cache
from furiosa_llm.execution.decode_graphs import DecodeGraphs, DecodeShape
from furiosa_llm.execution.forward_pass import ForwardPass
from furiosa_llm.execution.gpu_device import GpuDevice
from furiosa_llm.execution.grammar_masks import GrammarMasks
from furiosa_llm.execution.grammars import Grammars
from furiosa_llm.execution.heap import give_freed_memory_back, keep_freed_memory
from furiosa_llm.execution.model_options import (
    choose_max_model_len,
    dtype_of,
    refuse_unserved_options,
)
from furiosa_llm.execution.model_runner import ModelRunner
from furiosa_llm.execution.stage_runner import StageRunner
from furiosa_llm.execution.stopwatches import stopwatch
from furiosa_llm.execution.token_caches import bind_token_caches
from furiosa_llm.execution.token_chooser import TokenChooser
from furiosa_llm.memory_limits import free_memory_bytes
from furiosa_llm.modeling import paged_attention
from furiosa_llm.modeling.cpu import (
    attention_kernel,
    decoder_kernel,
    draw_kernel,
    int8_rounding,
    layer_kernels,
    products,
)
from furiosa_llm.modeling.cpu.attention import CpuAttention
from furiosa_llm.modeling.cpu.core_threads import CoreThreads
from furiosa_llm.modeling.cpu.fusion import use_threads
from furiosa_llm.modeling.cpu.kernel_cache import keep_compiled
from furiosa_llm.modeling.gpu.attention import GpuAttention
from furiosa_llm.modeling.gpu.cache_store import CacheStore
from furiosa_llm.modeling.gpu.program_cache import keep_programs
from furiosa_llm.modeling.gpu.quantized_linear import quantize_linears
from furiosa_llm.modeling.loader import LoadedModel, load_model
from furiosa_llm.modeling.paged_attention import CurrentStep
from furiosa_llm.scheduler_config import SchedulerConfig
from furiosa_llm.tokenization import Tokenizer

KERNELS = (
    *attention_kernel.KERNELS,
    *layer_kernels.KERNELS,
    *products.KERNELS,
    *decoder_kernel.KERNELS,
    *int8_rounding.KERNELS,
    *draw_kernel.KERNELS,
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
    gpu: GpuDevice | None = None
    decode_shapes: tuple[DecodeShape, ...] = ()

    @classmethod
    def of(
        cls,
        args: EngineArgs,
        loaded: LoadedModel,
        *,
        max_model_len: int,
        num_blocks: int,
        device: torch.device,
        gpu: GpuDevice | None = None,
        decode_shapes: tuple[DecodeShape, ...] = (),
    ) -> PreparedModel:
        """Joins a loaded model with what was decided for it.

        Args:
            args: What was asked for.
            loaded: The model.
            max_model_len: Longest prompt plus answer.
            num_blocks: KV-cache blocks.
            device: Where the model is.
            gpu: The device, if it is a GPU.
            decode_shapes: Those that graphs are recorded for, on a GPU.
        """
        if gpu is None:
            keep_compiled(KERNELS, args.cache_dir)
        scheduler_config = SchedulerConfig.from_engine_args(args)
        if args.npu_queue_limit is None and loaded.stage is None and gpu is None:
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
                favours_decodes=bool(decode_shapes),
            ),
            device=device,
            gpu=gpu,
            decode_shapes=decode_shapes,
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
        current_step = CurrentStep()
        graphs = None
        if self.gpu is None:
            self._bind_cpu(current_step)
        else:
            graphs = self._bind_gpu(current_step, self.gpu)
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
            graphs=graphs,
            start_watch=functools.partial(stopwatch, self.device, stage),
        )

    def _bind_cpu(self, current_step: CurrentStep) -> None:
        cache_config = self.limits.cache_config
        caches = kv_cache.allocate(
            [layer.shape for layer in self.loaded.layers],
            dtype=self.loaded.cache_dtype,
            num_blocks=cache_config.num_blocks,
            block_size=cache_config.block_size,
        )
        keep_freed_memory()
        threads = CoreThreads(torch.get_num_threads())
        use_threads(self.loaded.model, threads)
        paged_attention.bind(self.loaded.layers, caches, current_step, CpuAttention(threads))

    def _bind_gpu(self, current_step: CurrentStep, gpu: GpuDevice) -> DecodeGraphs | None:
        cache_config = self.limits.cache_config
        bind_token_caches(
            self.loaded.layers,
            current_step,
            num_blocks=cache_config.num_blocks,
            block_size=cache_config.block_size,
            dtype=self.loaded.model.dtype,
            device=gpu.device,
            attention=GpuAttention(gpu.kernels, CacheStore(gpu.layer_kernels)),
        )
        return gpu_start.decode_graphs(self.decode_shapes, gpu, cache_config)

    def _grammars(self) -> Grammars:
        load_tokenizer = functools.partial(Tokenizer.from_engine_args, self.args)
        return Grammars(load_tokenizer, self.limits.model_info)


def prepare_model(args: EngineArgs, *, device: str = "cpu", num_replicas: int = 1) -> PreparedModel:
    """Loads the model of `args` and decides the size of each replica's KV cache.

    Args:
        args: What was asked for.
        device: As torch names it: `cpu`, `cuda:1`.
        num_replicas: Replicas that share the device's memory; a GPU has one.

    Raises:
        ModelLoadError: The checkpoint is missing, damaged or not supported.
        ConfigError: An option does not go with the model or the memory.
    """
    place = torch.device(device)
    scheduler_config = SchedulerConfig.from_engine_args(args)  # before minutes of loading
    refuse_unserved_options(args, place, is_split=False)
    loaded = load_model(
        args.model,
        dtype=dtype_of(args, place),
        trust_remote_code=args.trust_remote_code,
        allow_pickle=args.allow_pickle,
    )
    if place.type != "cpu":
        return prepare_on_gpu(args, loaded, GpuDevice.of(place), is_alone=True)
    keep_compiled(KERNELS, args.cache_dir)
    loaded = loaded.fused(quantization=args.quantization, deterministic=args.deterministic)
    give_freed_memory_back()
    max_model_len = choose_max_model_len(args, loaded)
    num_blocks = kv_cache.choose_num_blocks(
        args,
        [layer.shape for layer in loaded.layers],
        dtype=loaded.cache_dtype,
        max_model_len=max_model_len,
        max_num_seqs=scheduler_config.max_num_seqs,
        available_bytes=free_memory_bytes() // num_replicas,
    )
    return PreparedModel.of(
        args, loaded, max_model_len=max_model_len, num_blocks=num_blocks, device=place
    )


def prepare_on_gpu(
    args: EngineArgs, loaded: LoadedModel, gpu: GpuDevice, *, is_alone: bool
) -> PreparedModel:
    """Takes a model, or a rank's part of one, to a GPU and decides the size of its KV cache.

    The ranks of a group have to call it together: they run a step. What each decides for itself
    may differ from rank to rank.

    Args:
        args: What was asked for.
        loaded: The model, on the host.
        gpu: The GPU.
        is_alone: Whether the GPU has the whole model, so that decodes can run as graphs.

    Raises:
        ConfigError: An option does not go with the model or the memory.
        ModelLoadError: The model cannot be quantised.
    """
    keep_programs(args.cache_dir)
    max_model_len = choose_max_model_len(args, loaded)
    gpu_start.move_to_gpu(loaded.model, gpu)
    place = functools.partial(
        PreparedModel.of, args, loaded, max_model_len=max_model_len, device=gpu.device, gpu=gpu
    )
    make_trial_runner = place(num_blocks=1).make_runner
    gpu_start.use_fewer_kernels(loaded, make_trial_runner, gpu.layer_kernels)
    if args.quantization is not None:
        quantize_linears(loaded.model, args.quantization)
    num_blocks = gpu_start.choose_num_blocks(
        args,
        loaded,
        make_trial_runner,
        max_model_len=max_model_len,
        gpu=gpu,
        is_alone=is_alone,
    )
    shapes = gpu_start.decode_shapes(args, max_model_len=max_model_len) if is_alone else ()
    return place(num_blocks=num_blocks, decode_shapes=shapes)
