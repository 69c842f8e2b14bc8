"""Keys and values are stored by a kernel where it writes the same."""

from __future__ import annotations

import torch

from furiosa_llm.modeling.gpu.cache_store import CacheStore
from furiosa_llm.modeling.gpu.token_cache import TokenCache
from tests.unit.gpu.plain_layer_kernels import PlainLayerKernels

SLOTS = torch.tensor([6, 1])


def make_cache() -> TokenCache:
    return TokenCache(keys=torch.zeros(2, 4, 2, 8), values=torch.zeros(2, 4, 2, 4))


def stored(kernels: PlainLayerKernels | None, *, times: int = 1) -> TokenCache:
    store, cache = CacheStore(kernels), make_cache()
    generator = torch.Generator().manual_seed(1)
    key, value = (torch.randn(2, 2, size, generator=generator) for size in (8, 4))
    for _ in range(times):
        store(cache, SLOTS, key, value)
    return cache


class _Wrong(PlainLayerKernels):
    def store(
        self, cache: TokenCache, slot_mapping: torch.Tensor, key: torch.Tensor, value: torch.Tensor
    ) -> bool:
        return super().store(cache, slot_mapping, key, -value)


class _Broken(PlainLayerKernels):
    def store(self, *_: object) -> bool:
        self.calls["store"] += 1
        raise RuntimeError("does not compile")


class _Picky(PlainLayerKernels):
    def store(self, *_: object) -> bool:
        self.calls["store"] += 1
        return False


def test_a_kernel_is_tried_once_for_each_kind_of_layer() -> None:
    kernels = PlainLayerKernels()

    cache = stored(kernels, times=3)

    assert kernels.calls["store"] == 1 + 3
    assert torch.equal(cache.keys, stored(None).keys)
    assert torch.equal(cache.values, stored(None).values)


def test_a_kernel_that_writes_something_else_is_not_used() -> None:
    for kernels in (_Wrong(), _Broken(), _Picky()):
        cache = stored(kernels, times=2)

        assert kernels.calls["store"] == 1
        assert torch.equal(cache.keys, stored(None).keys)
        assert torch.equal(cache.values, stored(None).values)
