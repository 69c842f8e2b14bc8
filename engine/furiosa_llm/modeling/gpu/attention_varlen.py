"""Paged attention by torch's own kernels for sequences of many lengths.

They are FlashAttention (Dao, 2023) behind `torch.nn.attention.varlen`, whose arguments differ from
one version of torch to the next: what they are is asked of the function itself, here alone.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Self

import torch

from furiosa_llm.modeling.attention_params import AttentionParams
from furiosa_llm.modeling.gpu.token_cache import TokenCache
from furiosa_llm.modeling.step_layout import StepLayout

_NEEDED = frozenset({"scale", "window_size", "enable_gqa", "seqused_k", "block_table"})
_DTYPES = frozenset({torch.bfloat16, torch.float16})
_LARGEST_HEAD = 256
_HEAD_MULTIPLE = 8
_BLOCK_MULTIPLE_OF_SECOND = 256  # FlashAttention 2 reads blocks of no other sizes


class VarlenAttention:
    """Calls torch's kernel with paged keys and values. See `PagedKernel`."""

    def __init__(self, function: Callable[..., object], *, version: str | None) -> None:
        """Takes the kernel.

        Args:
            function: `varlen_attn`, or what takes the same arguments.
            version: The FlashAttention that was chosen for torch, as `FA3`; None for its own.
        """
        self._function = function
        self._is_second = version in (None, "FA2")
        self._takes_num_splits = "num_splits" in inspect.signature(function).parameters

    @classmethod
    def find(cls) -> Self | None:
        """Returns the kernel of this torch; None if it has none that reads paged blocks."""
        try:
            from torch.nn import attention
            from torch.nn.attention.varlen import varlen_attn
        except ImportError:
            return None
        if not inspect.signature(varlen_attn).parameters.keys() >= _NEEDED:
            return None
        current = getattr(attention, "current_flash_attention_impl", None)
        return cls(varlen_attn, version=None if current is None else current())

    def serves(self, query: torch.Tensor, cache: TokenCache, params: AttentionParams) -> bool:
        """Tells whether the kernel knows the variant, the type and the sizes."""
        head_size = query.shape[-1]
        return (
            params.softcap is None
            and params.sinks is None
            and query.dtype == cache.keys.dtype
            and query.dtype in _DTYPES
            and cache.keys.shape == cache.values.shape
            and head_size <= _LARGEST_HEAD
            and head_size % _HEAD_MULTIPLE == 0
            and not (self._is_second and cache.block_size % _BLOCK_MULTIPLE_OF_SECOND)
        )

    def __call__(
        self, query: torch.Tensor, cache: TokenCache, layout: StepLayout, params: AttentionParams
    ) -> torch.Tensor:
        """Lets each request's queries attend to its own keys. [T, H, D] -> [T, H, D]."""
        # The kernel counts the keys before a query's own, and takes -1 for all.
        window = -1 if params.sliding_window is None else params.sliding_window - 1
        splits = {"num_splits": 1} if self._is_second and self._takes_num_splits else {}
        output = self._function(
            query.contiguous(),
            cache.keys,
            cache.values,
            layout.query_start_loc,
            layout.key_start_loc if self._is_second else None,
            layout.max_query_len or query.shape[0],
            layout.block_tables.shape[1] * cache.block_size,
            scale=params.scaling,
            window_size=(window, 0),
            enable_gqa=query.shape[1] != cache.keys.shape[2],
            seqused_k=layout.seq_lens,
            block_table=layout.block_tables,
            **splits,
        )
        assert isinstance(output, torch.Tensor), "nothing but the output was asked for"
        return output
