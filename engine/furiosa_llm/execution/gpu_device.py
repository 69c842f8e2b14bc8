"""A GPU as what runs on it sees it. Tests put a CPU in its place."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

import torch

from furiosa_llm.execution.cuda_graphs import CudaGraphRecorder
from furiosa_llm.execution.decode_graphs import GraphRecorder
from furiosa_llm.execution.gpu_memory import CudaMemory, MemoryReader
from furiosa_llm.modeling.gpu import available_kernels
from furiosa_llm.modeling.gpu.attention import PagedKernel
from furiosa_llm.modeling.gpu.layer_kernels import LayerKernels


@dataclass(frozen=True, slots=True, kw_only=True)
class GpuDevice:
    """What there is of a GPU.

    Attributes:
        device: As torch names it.
        memory: Tells of its memory.
        recorder: Records what it is told to do.
        kernels: Attention kernels, the preferred first.
        layer_kernels: Those of what lies between products; plain torch does without.
    """

    device: torch.device
    memory: MemoryReader
    recorder: GraphRecorder
    kernels: tuple[PagedKernel, ...]
    layer_kernels: LayerKernels | None = None

    @classmethod
    def of(cls, device: torch.device) -> Self:
        """Returns a GPU that torch can use."""
        return cls(
            device=device,
            memory=CudaMemory(device),
            recorder=CudaGraphRecorder(device),
            kernels=tuple(available_kernels.attention_kernels()),
            layer_kernels=available_kernels.layer_kernels(),
        )
