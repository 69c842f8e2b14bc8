"""How many kernels of a GPU a forward pass would start, counted on a CPU."""

from __future__ import annotations

from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from furiosa_llm.execution.block_tables import BlockTables
from furiosa_llm.execution.forward_pass import ForwardPass
from furiosa_llm.execution.input_batch import InputBatch
from furiosa_llm.execution.token_caches import bind_token_caches
from furiosa_llm.modeling.attention_params import AttentionParams
from furiosa_llm.modeling.gpu.attention import GpuAttention
from furiosa_llm.modeling.gpu.cache_store import CacheStore
from furiosa_llm.modeling.gpu.joined_mlp import join_mlps
from furiosa_llm.modeling.gpu.joined_projections import join_projections
from furiosa_llm.modeling.gpu.one_kernel_norms import swap_norms
from furiosa_llm.modeling.gpu.one_kernel_rotary import swap_rotaries
from furiosa_llm.modeling.gpu.token_cache import TokenCache
from furiosa_llm.modeling.loader import LoadedModel
from furiosa_llm.modeling.paged_attention import CurrentStep
from furiosa_llm.modeling.step_layout import StepLayout
from tests.unit.gpu.gpu_factories import make_share, make_step
from tests.unit.gpu.plain_layer_kernels import PlainLayerKernels


class KernelCount(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts operators that compute: views and reservations of memory start no kernel."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.total = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        first = result[0] if isinstance(result, list | tuple) else result
        is_view = not func._schema.is_mutable and any(
            isinstance(argument, torch.Tensor)
            and argument.untyped_storage().data_ptr() == first.untyped_storage().data_ptr()
            for argument in args
        )
        if not is_view and "empty" not in func.name():
            self.total += 1
        return result


class CountedLayerKernels(PlainLayerKernels):
    """Each of them counts as one kernel, however plain torch does the same."""

    def __init__(self, count: KernelCount) -> None:
        super().__init__()
        self._count = count

    def __getattribute__(self, name: str) -> Any:
        found = super().__getattribute__(name)
        if name not in ("normalize", "gate", "rotate", "store"):
            return found
        count = self._count

        def counted(*args: Any, **kwargs: Any) -> Any:
            before = count.total
            result = found(*args, **kwargs)
            count.total = before + 1
            return result

        return counted


class CountedAttention:
    """One kernel for all of a layer, though what it returns is of no use: see `PagedKernel`."""

    def serves(self, *_: object) -> bool:
        return True

    def __call__(
        self, query: torch.Tensor, cache: TokenCache, layout: StepLayout, params: AttentionParams
    ) -> torch.Tensor:
        del layout, params
        query = query.contiguous()  # as `TritonAttention` does
        return query.new_zeros(*query.shape[:2], cache.values.shape[-1])


def kernels_of_a_decode(loaded: LoadedModel, *, is_fewer: bool) -> int:
    """Returns how many kernels a step of two requests starts, with joined linear layers.

    Args:
        loaded: The model, which this changes.
        is_fewer: Whether what lies between products is one kernel each.
    """
    count, current_step, device = KernelCount(), CurrentStep(), torch.device("cpu")
    kernels = CountedLayerKernels(count) if is_fewer else None
    attention = GpuAttention([], CacheStore(kernels))
    attention._kernel_for = lambda *_: CountedAttention()  # type: ignore[method-assign]
    bind_token_caches(
        loaded.layers,
        current_step,
        num_blocks=4,
        block_size=16,
        dtype=loaded.model.dtype,
        device=device,
        attention=attention,
    )
    step = make_step(
        make_share(0, (5,), start=3, block_ids=(1,)), make_share(1, (6,), start=5, block_ids=(2,))
    )
    batch = InputBatch.build(step, BlockTables(), block_size=16, device=device)
    forward = ForwardPass(loaded.model, current_step)
    with torch.inference_mode():
        join_mlps(loaded.model, kernels)
        join_projections(loaded.layers, lambda: forward(batch))
        if kernels is not None:
            swap_norms(loaded.model, kernels)
            swap_rotaries(loaded.layers, kernels, lambda: forward(batch))
        with count:
            count.total = 0
            forward(batch)
    return count.total
