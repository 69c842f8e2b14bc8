"""Which kernels this installation has: without Triton, as in torch's builds for CPUs, fewer."""

from __future__ import annotations

from furiosa_llm.modeling.gpu.attention import PagedKernel
from furiosa_llm.modeling.gpu.attention_varlen import VarlenAttention
from furiosa_llm.modeling.gpu.layer_kernels import LayerKernels


def attention_kernels() -> list[PagedKernel]:
    """Returns those for attention, the preferred first."""
    kernels: list[PagedKernel] = []
    varlen = VarlenAttention.find()
    if varlen is not None:
        kernels.append(varlen)
    try:
        from furiosa_llm.modeling.gpu.attention_triton import TritonAttention
    except ImportError:
        return kernels
    return [*kernels, TritonAttention()]


def layer_kernels() -> LayerKernels | None:
    """Returns those for what lies between a layer's products; None if there are none."""
    try:
        from furiosa_llm.modeling.gpu.layer_triton import TritonLayerKernels
    except ImportError:
        return None
    return TritonLayerKernels()
