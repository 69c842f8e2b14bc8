"""Paged attention on the cores of a CPU."""

from __future__ import annotations

import numpy as np
import torch

from furiosa_llm.modeling.attention_params import AttentionParams
from furiosa_llm.modeling.cpu import attention_kernel
from furiosa_llm.modeling.cpu.attention_memory import AttentionMemory, attention_memory
from furiosa_llm.modeling.cpu.core_threads import CoreThreads
from furiosa_llm.modeling.cpu.layer_cache import LayerCache
from furiosa_llm.modeling.cpu.simd import Floats
from furiosa_llm.modeling.step_layout import StepLayout

_NO_WINDOW = 2**31 - 1
_NO_SINKS = np.empty(0, np.float32)
_UNITS_PER_THREAD = 4  # fewer, and the key heads of a task are shared among threads


class CpuAttention:
    """Paged attention on the cores of a process. See `AttentionBackend`."""

    def __init__(self, threads: CoreThreads) -> None:
        self._threads = threads
        self._memory: dict[tuple[object, ...], AttentionMemory] = {}

    def __call__(
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        cache: LayerCache,
        layout: StepLayout,
        params: AttentionParams,
    ) -> torch.Tensor:
        """Stores keys [T, K, D] and values [T, K, E], then attends: [T, H, D] -> [T, H, E]."""
        attention_kernel.store_tokens(
            cache.blocks.numpy(),
            cache.block_size,
            layout.slot_mapping.numpy(),
            _array(key),
            _array(value),
        )
        queries = _array(query)
        output = self.attend(
            queries.reshape(-1), queries[0].size, query.shape[1], cache, layout, params
        )
        return output.to(query.dtype)

    def attend(
        self,
        query: Floats,
        query_stride: int,
        num_heads: int,
        cache: LayerCache,
        layout: StepLayout,
        params: AttentionParams,
    ) -> torch.Tensor:
        """Attends with keys and values that are stored. Returns [T, H, E].

        Args:
            query: Flat; token t's queries [H, D] begin at t * query_stride.
            query_stride: See there.
            num_heads: H.
            cache: The layer's.
            layout: The step's.
            params: The layer's.
        """
        num_kv_heads = cache.shape.num_kv_heads
        num_tokens, num_tasks = layout.slot_mapping.shape[0], layout.tasks.shape[0]
        output = torch.empty(num_tokens, num_heads, cache.shape.value_size)
        heads_per_unit = self.heads_per_unit(num_tasks, num_kv_heads)
        arguments = (
            query,
            query_stride,
            cache.blocks.numpy(),
            output.numpy(),
            cache.shape.key_size,
            cache.block_size,
            layout.tasks.numpy(),
            layout.query_start_loc.numpy(),
            layout.seq_lens.numpy(),
            layout.block_tables.numpy(),
            *attention_settings(params),
            heads_per_unit,
            self._memory_for(cache, num_heads),
        )
        self._threads.share(
            lambda share, num_shares: attention_kernel.attend(*arguments, share, num_shares),
            num_units=num_tasks * num_kv_heads // heads_per_unit,
        )
        return output

    def _memory_for(self, cache: LayerCache, num_heads: int) -> AttentionMemory:
        """Returns the same memory to all layers of a kind."""
        key = cache.kind, num_heads
        if key not in self._memory:
            self._memory[key] = attention_memory(cache, num_heads, self._threads.num_threads)
        return self._memory[key]

    def heads_per_unit(self, num_tasks: int, num_kv_heads: int) -> int:
        """Returns how many key heads of a task one thread computes."""
        num_threads = self._threads.num_threads
        shares_heads = num_tasks < _UNITS_PER_THREAD * num_threads > _UNITS_PER_THREAD
        return 1 if shares_heads else num_kv_heads


def attention_settings(
    params: AttentionParams,
) -> tuple[float, int, float, Floats]:
    """Returns scaling, window, cap and sinks as kernels take them."""
    return (
        params.scaling,
        params.sliding_window or _NO_WINDOW,
        params.softcap or 0.0,
        _NO_SINKS if params.sinks is None else _array(params.sinks),
    )


def _array(tensor: torch.Tensor) -> Floats:
    return tensor.detach().float().contiguous().numpy()
