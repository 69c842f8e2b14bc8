"""Writes the keys and values of a step to a `TokenCache`, in one kernel where there is one."""

from __future__ import annotations

import logging

import torch

from furiosa_llm.modeling.gpu.layer_kernels import LayerKernels
from furiosa_llm.modeling.gpu.token_cache import TokenCache

_logger = logging.getLogger(__name__)

_SLOTS = (3, 0)  # of two blocks of two tokens that a kernel is tried with

_Variant = tuple[object, ...]


class CacheStore:
    """Tries the kernel when the first layer of a kind runs, and uses it if it writes the same."""

    def __init__(self, kernels: LayerKernels | None) -> None:
        """Without kernels, plain torch writes."""
        self._kernels = kernels
        self._chosen: dict[_Variant, LayerKernels | None] = {}

    def __call__(
        self, cache: TokenCache, slot_mapping: torch.Tensor, key: torch.Tensor, value: torch.Tensor
    ) -> None:
        """Writes keys [T, K, D] and values [T, K, E] to the slots [T]. The host does not wait."""
        kernels = self._kernels
        if kernels is not None:
            kernels = self._tried(kernels, cache, slot_mapping, key, value)
        if kernels is None or not kernels.store(cache, slot_mapping, key, value):
            cache.store(slot_mapping, key, value)

    def _tried(
        self,
        kernels: LayerKernels,
        cache: TokenCache,
        slot_mapping: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
    ) -> LayerKernels | None:
        """Returns the kernels if they serve such layers."""
        variant = (
            *(key.dtype, key.shape[1:], value.shape[1:], slot_mapping.dtype),
            *(cache.keys.dtype, cache.keys.shape[1:], cache.values.shape[1:]),
        )
        if variant not in self._chosen:
            is_same = _writes_the_same(kernels, cache, slot_mapping, key, value)
            self._chosen[variant] = kernels if is_same else None
        return self._chosen[variant]


def _writes_the_same(
    kernels: LayerKernels,
    cache: TokenCache,
    slot_mapping: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
) -> bool:
    """Tells whether a kernel writes what plain torch does, to a cache of the same kind."""
    plain, tried = (
        TokenCache(
            keys=cache.keys.new_zeros(2, 2, *cache.keys.shape[2:]),
            values=cache.values.new_zeros(2, 2, *cache.values.shape[2:]),
        )
        for _ in range(2)
    )
    generator = torch.Generator().manual_seed(0)
    slots = torch.tensor(_SLOTS, dtype=slot_mapping.dtype, device=slot_mapping.device)
    # Strided as those of a model: parts of one product, heads of which are next to each other.
    num_heads, key_size, value_size = *key.shape[1:], value.shape[-1]
    size = num_heads * key_size
    drawn = torch.randn(len(_SLOTS), size + num_heads * value_size, generator=generator)
    rows = drawn.to(device=key.device, dtype=key.dtype)
    keys = rows[:, :size].view(-1, num_heads, key_size)
    values = rows[:, size:].view(-1, num_heads, value_size)
    plain.store(slots, keys, values)
    try:
        if not kernels.store(tried, slots, keys, values):
            return False
    except RuntimeError as error:
        _logger.info("keys and values are not stored in one kernel: %s", error)
        return False
    return torch.equal(plain.keys, tried.keys) and torch.equal(plain.values, tried.values)
