"""The path of a GPU, on a CPU: its cache, its attention, its graphs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from furiosa_llm.config import EngineArgs
from furiosa_llm.engine_core import EngineCore
from furiosa_llm.engine_limits import CacheConfig, EngineLimits
from furiosa_llm.execution.decode_graphs import DecodeGraphs, DecodeShape, Work
from furiosa_llm.execution.forward_pass import ForwardPass
from furiosa_llm.execution.gpu_start import use_fewer_kernels
from furiosa_llm.execution.grammar_masks import GrammarMasks
from furiosa_llm.execution.grammars import Grammars
from furiosa_llm.execution.model_runner import ModelRunner
from furiosa_llm.execution.step_queue import queue_for
from furiosa_llm.execution.stopwatches import HostStopwatch
from furiosa_llm.execution.token_caches import bind_token_caches
from furiosa_llm.execution.token_chooser import TokenChooser
from furiosa_llm.modeling.gpu.attention import GpuAttention, PagedKernel
from furiosa_llm.modeling.gpu.cache_store import CacheStore
from furiosa_llm.modeling.gpu.layer_kernels import LayerKernels
from furiosa_llm.modeling.gpu.token_cache import TokenCache
from furiosa_llm.modeling.loader import load_model
from furiosa_llm.modeling.paged_attention import CurrentStep
from furiosa_llm.outputs import RequestOutput
from furiosa_llm.request import TokenizedPrompt
from furiosa_llm.sampling_params import SamplingParams
from furiosa_llm.scheduler_config import SchedulerConfig
from furiosa_llm.steps_in_flight import StepExecutor
from furiosa_llm.tokenization import Tokenizer
from tests.unit.gpu.late_device import LateDevice


@dataclass
class Recording:
    """What a graph of CUDA does, on a CPU: the same work again, on the same memory."""

    num_recorded: int = 0
    num_replayed: int = 0

    def record(self, work: Work) -> Work:
        self.num_recorded += 1
        work()

        def replay() -> None:
            self.num_replayed += 1
            work()

        return replay


@dataclass
class GpuPath:
    """An engine whose one replica runs as on a GPU, in plain torch."""

    core: EngineCore
    runner: ModelRunner
    caches: list[TokenCache]
    recording: Recording | None

    @classmethod
    def of(
        cls,
        path: Path,
        *,
        num_blocks: int = 64,
        block_size: int = 16,
        shapes: Sequence[DecodeShape] | None = None,
        recording: Recording | None = None,
        kernels: Sequence[PagedKernel] = (),
        layer_kernels: LayerKernels | None = None,
        late: LateDevice | None = None,
        **options: Any,
    ) -> GpuPath:
        """Graphs are recorded if there are shapes for them; steps take long on a late device.

        With kernels for what lies between products, modules are swapped as on a GPU.
        """
        args = EngineArgs(
            model=str(path),
            paged_attention_num_blocks=num_blocks,
            paged_attention_block_size=block_size,
            **options,
        )
        loaded = load_model(str(path), dtype=torch.float32)
        limits = EngineLimits(
            scheduler_config=SchedulerConfig.from_engine_args(args),
            cache_config=CacheConfig(num_blocks=num_blocks, block_size=block_size),
            model_info=loaded.info,
        )
        current_step = CurrentStep()
        device = torch.device("cpu")
        caches = bind_token_caches(
            loaded.layers,
            current_step,
            num_blocks=num_blocks,
            block_size=block_size,
            dtype=torch.float32,
            device=device,
            attention=GpuAttention(kernels, CacheStore(layer_kernels)),
        )
        tokenizer = Tokenizer.from_engine_args(args)
        graphs = None
        if shapes is not None:
            recording = recording or Recording()
            graphs = DecodeGraphs(
                recording, shapes, block_size=block_size, scratch_block=num_blocks, device=device
            )
        num_in_flight = limits.scheduler_config.npu_queue_limit
        runner = ModelRunner(
            ForwardPass(loaded.model, current_step),
            TokenChooser(GrammarMasks(Grammars(lambda: tokenizer, loaded.info))),
            block_size=block_size,
            num_steps_in_flight=num_in_flight,
            device=device,
            graphs=graphs,
            start_watch=late.start_watch if late else HostStopwatch,
        )
        if layer_kernels is not None:
            use_fewer_kernels(loaded, lambda: runner, layer_kernels)
        executor: StepExecutor = queue_for(runner, num_in_flight, device_type="cuda")
        core = EngineCore(
            executor=late.over(executor) if late else executor, tokenizer=tokenizer, limits=limits
        )
        return cls(core, runner, caches, recording)

    def answer(self, prompts: Sequence[Sequence[int]], params: SamplingParams) -> list[list[int]]:
        """Returns the tokens of each answer."""
        return answer_all(self.core, prompts, params)


def answer_all(
    core: EngineCore, prompts: Sequence[Sequence[int]], params: SamplingParams
) -> list[list[int]]:
    """Returns the tokens of each answer, and ends the engine."""
    outputs = run_all(core, prompts, [params] * len(prompts))
    return [output.outputs[0].token_ids for output in outputs]


def run_all(
    core: EngineCore, prompts: Sequence[Sequence[int]], params: Sequence[SamplingParams]
) -> list[RequestOutput]:
    """Returns the last output of each prompt, and ends the engine."""
    for index, (prompt, own) in enumerate(zip(prompts, params, strict=True)):
        core.add(
            TokenizedPrompt(
                request_id=str(index),
                text=None,
                prompt_token_ids=list(prompt),
                sampling_params=own,
                max_tokens=own.max_tokens or 16,
                arrival_time=0.0,
            )
        )
    last: dict[str, RequestOutput] = {}
    while core.num_unfinished:
        last.update((output.request_id, output) for output in core.step())
    core.close()
    return [last[str(index)] for index in range(len(prompts))]
