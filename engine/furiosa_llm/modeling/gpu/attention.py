"""Paged attention on a GPU: stores keys and values, and finds a kernel for each kind of layer.

Which kernel serves a layer is not read from versions alone: what may serve it is given a few
tokens, and taken if it agrees with plain torch.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Protocol

import torch

from furiosa_llm.modeling.attention_params import AttentionParams
from furiosa_llm.modeling.gpu.attention_gathered import attend_gathered
from furiosa_llm.modeling.gpu.cache_store import CacheStore
from furiosa_llm.modeling.gpu.token_cache import TokenCache
from furiosa_llm.modeling.step_layout import StepLayout, make_layout

_logger = logging.getLogger(__name__)

# First and last position of the tokens of each request in the steps that a kernel is tried with:
# decodes alone, one of them long; and a decode with a whole prompt and a chunk that has a past.
_TRIALS = (
    ((70, 71), (700, 701), (0, 1)),
    ((70, 71), (0, 37), (33, 60), (15, 16)),
)
_TOLERANCES = {torch.bfloat16: 3e-2, torch.float16: 5e-3, torch.float32: 1e-3}

_Variant = tuple[object, ...]


class PagedKernel(Protocol):
    """A way to attend that serves some layers, or all."""

    def serves(self, query: torch.Tensor, cache: TokenCache, params: AttentionParams) -> bool:
        """Tells whether it may be tried on such queries [T, H, D]."""

    def __call__(
        self, query: torch.Tensor, cache: TokenCache, layout: StepLayout, params: AttentionParams
    ) -> torch.Tensor:
        """Lets each request's queries attend to its own keys. [T, H, D] -> [T, H, E]."""


class GpuAttention:
    """Paged attention over `TokenCache`. See `AttentionBackend`."""

    def __init__(self, kernels: Sequence[PagedKernel], store: CacheStore | None = None) -> None:
        """Takes kernels, the preferred first. Plain torch serves what none of them does."""
        self._kernels = kernels
        self._store = store or CacheStore(None)
        self._chosen: dict[_Variant, PagedKernel | None] = {}

    def __call__(
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        cache: TokenCache,
        layout: StepLayout,
        params: AttentionParams,
    ) -> torch.Tensor:
        """Stores keys [T, K, D] and values [T, K, E], then attends: [T, H, D] -> [T, H, E]."""
        self._store(cache, layout.slot_mapping, key, value)
        kernel = self._kernel_for(query, cache, params)
        if kernel is None:
            return attend_gathered(query, cache, layout, params)
        return kernel(query, cache, layout, params)

    def _kernel_for(
        self, query: torch.Tensor, cache: TokenCache, params: AttentionParams
    ) -> PagedKernel | None:
        """Returns the kernel of a kind of layer, tried when the first of them runs."""
        variant = (
            *(query.dtype, query.shape[1:], cache.keys.shape[1:], cache.values.shape[-1]),
            *(params.scaling, params.sliding_window, params.softcap, params.sinks is None),
        )
        if variant not in self._chosen:
            self._chosen[variant] = self._choose(query, cache, params)
        return self._chosen[variant]

    def _choose(
        self, query: torch.Tensor, cache: TokenCache, params: AttentionParams
    ) -> PagedKernel | None:
        for kernel in self._kernels:
            if kernel.serves(query, cache, params) and all(
                _agrees(kernel, spans, query, cache, params) for spans in _TRIALS
            ):
                return kernel
        _logger.warning(
            "attention of heads of %d, %s, is computed in plain torch, which is slow: no kernel "
            "serves it",
            query.shape[-1],
            query.dtype,
        )
        return None


def _agrees(
    kernel: PagedKernel,
    spans: Sequence[tuple[int, int]],
    query: torch.Tensor,
    cache: TokenCache,
    params: AttentionParams,
) -> bool:
    """Tells whether a kernel says the same as plain torch about a step of these spans."""
    layout = make_layout(spans, block_size=cache.block_size, device=query.device)
    generator = torch.Generator().manual_seed(0)

    def draw(*shape: int) -> torch.Tensor:
        drawn = torch.randn(*shape, generator=generator)
        return drawn.to(device=query.device, dtype=query.dtype)

    num_blocks = int(layout.block_tables.max()) + 1
    trial = TokenCache(
        keys=draw(num_blocks, *cache.keys.shape[1:]),
        values=draw(num_blocks, *cache.values.shape[1:]),
    )
    queries = draw(len(layout.slot_mapping), *query.shape[1:])
    expected = attend_gathered(queries, trial, layout, params)
    try:
        actual = kernel(queries, trial, layout, params)
    except (RuntimeError, TypeError, ValueError) as error:
        _logger.info("%s cannot be used: %s", type(kernel).__name__, error)
        return False
    difference = (actual - expected).abs().max().item()
    agrees = difference <= _TOLERANCES[query.dtype] * expected.abs().max().item()
    if not agrees:
        _logger.info("%s is not used: it is off by %g", type(kernel).__name__, difference)
    return agrees
