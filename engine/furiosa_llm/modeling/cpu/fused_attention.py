"""Attention with one projection, and one pass between it and the scores."""

from __future__ import annotations

import numpy as np
import torch
from torch import nn

from furiosa_llm.modeling.attention_params import AttentionParams
from furiosa_llm.modeling.cpu import layer_kernels
from furiosa_llm.modeling.cpu.attention import CpuAttention
from furiosa_llm.modeling.cpu.fused_modules import FusedRmsNorm
from furiosa_llm.modeling.cpu.layer_cache import LayerCache
from furiosa_llm.modeling.cpu.packed_linear import PackedLinear, packable_linears
from furiosa_llm.modeling.cpu.simd import Floats
from furiosa_llm.modeling.layer_shape import LayerShape
from furiosa_llm.modeling.paged_attention import PagedLayer

_NO_NORM = np.empty(0, np.float32)


class FusedAttention(nn.Module):
    """Rotary attention whose queries, keys and values come out of one matrix product."""

    def __init__(
        self,
        projection: PackedLinear,
        output: PackedLinear,
        norms: tuple[FusedRmsNorm, FusedRmsNorm] | None,
        shape: LayerShape,
        params: AttentionParams,
    ) -> None:
        """Joins the parts.

        Args:
            projection: To [(H + 2 * K) * D].
            output: From [H * D].
            norms: Of each query head and of each key head, if there are such.
            shape: Of the keys and values; they have the same size.
            params: Asked for in each step.
        """
        super().__init__()
        self.qkv_proj = projection
        self.o_proj = output
        self.query_norm = norms[0].scale if norms else _NO_NORM
        self.key_norm = norms[1].scale if norms else _NO_NORM
        self.epsilon = norms[0].epsilon if norms else 0.0
        self.params = params
        self.head_size = shape.key_size
        self.num_heads = projection.out_features // shape.key_size - 2 * shape.num_kv_heads

    @classmethod
    def candidates(
        cls, module: nn.Module, shape: LayerShape, params: AttentionParams
    ) -> list[FusedAttention]:
        """Returns what may compute the same as an attention module of transformers."""
        linears = packable_linears(module, ("q_proj", "k_proj", "v_proj", "o_proj"))
        if linears is None or shape.key_size != shape.value_size:
            return []
        query, key, value, output = linears
        projection, back = PackedLinear.of(query, key, value), PackedLinear.of(output)
        return [
            cls(projection, back, norms, shape, params)
            for norms in _head_norms(module, shape.key_size)
        ]

    def forward(
        self,
        hidden_states: torch.Tensor,
        position_embeddings: tuple[torch.Tensor, torch.Tensor],
        *_: object,
        **__: object,
    ) -> tuple[torch.Tensor, None]:
        """[1, T, I] -> [1, T, I]. transformers passes more, which `fusion` found not to matter."""
        paged: PagedLayer[LayerCache] = PagedLayer.of(self)
        assert isinstance(paged.backend, CpuAttention)
        projected = self.project(
            hidden_states, position_embeddings, paged.cache, paged.layout.slot_mapping
        )
        output = paged.backend.attend(
            projected.reshape(-1),
            projected.shape[1],
            self.num_heads,
            paged.cache,
            paged.layout,
            self.params,
        )
        return self.o_proj(output.flatten(1)[None]), None

    def project(
        self,
        hidden_states: torch.Tensor,
        position_embeddings: tuple[torch.Tensor, torch.Tensor],
        cache: LayerCache,
        slot_mapping: torch.Tensor,
    ) -> Floats:
        """Returns [T, (H + 2 * K) * D], queries first; keys and values are in the cache then."""
        projected: Floats = self.qkv_proj(hidden_states)[0].numpy()
        cos, sin = position_embeddings
        layer_kernels.rotate_and_store(
            projected,
            self.num_heads,
            self.head_size,
            self.query_norm,
            self.key_norm,
            self.epsilon,
            cos[0].numpy(),
            sin[0].numpy(),
            slot_mapping.numpy(),
            cache.blocks.numpy(),
            cache.block_size,
        )
        return projected


def _head_norms(
    module: nn.Module, head_size: int
) -> list[tuple[FusedRmsNorm, FusedRmsNorm] | None]:
    """Norms over single heads that may compute the same as a module's own; None for none."""
    norms = [norm for norm in (getattr(module, f"{name}_norm", None) for name in "qk") if norm]
    if not norms:
        return [None]
    if len(norms) == 1:
        return []
    return [
        (query_norm, key_norm)
        for query_norm, key_norm in zip(*map(FusedRmsNorm.candidates, norms), strict=False)
        if query_norm.scale.shape == key_norm.scale.shape == (head_size,)
        and query_norm.epsilon == key_norm.epsilon
    ]
