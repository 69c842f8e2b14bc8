"""Decoder layers that are computed by one kernel, from the fused modules that they consist of."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch
from torch import nn

from furiosa_llm.modeling import decoder_kernel
from furiosa_llm.modeling.attention_cpu import CpuAttention, attention_settings
from furiosa_llm.modeling.barrier import new_counter
from furiosa_llm.modeling.core_threads import CoreThreads
from furiosa_llm.modeling.decoder_kernel import (
    DecoderAttention,
    DecoderMemory,
    DecoderStep,
    DecoderWeights,
    NormWeights,
)
from furiosa_llm.modeling.fused_attention import FusedAttention
from furiosa_llm.modeling.fused_modules import FusedGatedMlp, FusedRmsNorm
from furiosa_llm.modeling.paged_attention import PagedLayer
from furiosa_llm.modeling.products import rows_for

_PARTS = {
    "input_layernorm": FusedRmsNorm,
    "self_attn": FusedAttention,
    "post_attention_layernorm": FusedRmsNorm,
    "mlp": FusedGatedMlp,
}


class DecoderSizes(NamedTuple):
    """Elements of a token."""

    hidden: int
    attended: int
    projected: int
    gated: int


def _reserve(weights: DecoderWeights, sizes: DecoderSizes, num_tokens: int) -> DecoderMemory:
    widest = max(sizes.projected, 2 * sizes.gated)
    return DecoderMemory(
        rows=rows_for(weights.qkv, num_tokens, max(sizes.hidden, sizes.attended, sizes.gated)),
        projected=np.empty(num_tokens * widest, np.float32),
        attended=np.empty(num_tokens * sizes.attended, np.float32),
        changes=np.empty(num_tokens * sizes.hidden, np.float32),
        counter=new_counter(),
    )


class SharedMemory:
    """What layers that run one after the other keep their intermediate results in."""

    def __init__(self) -> None:
        self._kept: dict[tuple[type, DecoderSizes], tuple[int, DecoderMemory]] = {}

    def for_step(
        self, weights: DecoderWeights, sizes: DecoderSizes, num_tokens: int
    ) -> DecoderMemory:
        """Returns memory for so many tokens, the same to all layers of a precision and sizes."""
        key = type(weights.qkv), sizes
        most_tokens, memory = self._kept.get(key, (0, None))
        if memory is None or num_tokens > most_tokens:
            memory = _reserve(weights, sizes, num_tokens)
            self._kept[key] = num_tokens, memory
        return memory


class FusedDecoderLayer(nn.Module):
    """x = x + attention(norm(x)), then x = x + mlp(norm(x)), in one call.

    Attributes:
        threads: To compute with.
    """

    def __init__(self, layer: nn.Module, memory: SharedMemory, *, is_last: bool) -> None:
        """Takes over the parts of a layer; see `can_fuse`.

        Args:
            layer: transformers' layer, with fused parts.
            memory: Shared with layers of the same sizes.
            is_last: Whether only tokens whose logits are asked for are needed of its output.
        """
        super().__init__()
        for name in _PARTS:
            self.add_module(name, layer.get_submodule(name))
        self.threads = CoreThreads(1)
        self._is_last = is_last
        self._memory = memory
        self.take_weights()

    def take_weights(self) -> None:
        """Computes with the weights that its parts have now."""
        attention, mlp = self._attention, self._mlp
        self._weights = DecoderWeights(
            input_norm=_norm_weights(self.input_layernorm),
            qkv=attention.qkv_proj.weights,
            query_norm=NormWeights(attention.query_norm, attention.epsilon),
            key_norm=NormWeights(attention.key_norm, attention.epsilon),
            output=attention.o_proj.weights,
            mlp_norm=_norm_weights(self.post_attention_layernorm),
            gate_up=mlp.gate_up_proj.weights,
            down=mlp.down_proj.weights,
            gated_size=mlp.down_proj.in_features,
        )
        self._sizes = DecoderSizes(
            hidden=attention.qkv_proj.in_features,
            attended=attention.o_proj.in_features,
            projected=attention.qkv_proj.out_features,
            gated=mlp.down_proj.in_features,
        )

    @staticmethod
    def can_fuse(layer: nn.Module) -> bool:
        """Tells whether a layer consists of the parts that the kernel knows, and nothing else."""
        parts = dict(layer.named_children())
        return (
            parts.keys() == _PARTS.keys()
            and all(isinstance(parts[name], kind) for name, kind in _PARTS.items())
            and bool(parts["mlp"].is_silu)
            and not any(True for _ in layer.parameters(recurse=False))
        )

    def forward(
        self,
        hidden_states: torch.Tensor,
        *_: object,
        position_embeddings: tuple[torch.Tensor, torch.Tensor],
        **__: object,
    ) -> torch.Tensor:
        """[1, T, I] -> [1, T, I]. transformers passes more, which `fusion` found not to matter."""
        attention = self._attention
        paged = PagedLayer.of(attention)
        assert isinstance(paged.backend, CpuAttention)
        layout, cache = paged.layout, paged.cache
        output = hidden_states.clone()
        hidden = output[0].numpy()
        cos, sin = position_embeddings
        tasks, kept = layout.kept_part if self._is_last else (layout.tasks, layout.all_tokens)
        settings = DecoderAttention(
            attention.num_heads,
            attention.head_size,
            cache.block_size,
            *attention_settings(attention.params),
        )
        step = DecoderStep(
            cos[0].numpy(),
            sin[0].numpy(),
            layout.slot_mapping.numpy(),
            tasks.numpy(),
            layout.query_start_loc.numpy(),
            layout.seq_lens.numpy(),
            layout.block_tables.numpy(),
            paged.backend.heads_per_unit(len(tasks), cache.shape.num_kv_heads),
            kept.numpy(),
        )
        memory = self._memory.for_step(self._weights, self._sizes, len(hidden))
        blocks = cache.blocks.numpy()
        self.threads.share(
            lambda share, num_shares: decoder_kernel.run_layer(
                hidden, self._weights, settings, step, blocks, memory, (share, num_shares)
            ),
            num_units=self.threads.num_threads,  # all meet at the barriers
        )
        return output

    @property
    def _attention(self) -> Any:
        return self.self_attn

    @property
    def _mlp(self) -> Any:
        return self.mlp


def fused_decoders(model: nn.Module) -> dict[nn.Module, FusedDecoderLayer]:
    """Returns the layers of a model that can be replaced, and what may compute the same."""
    layers = [module for module in model.modules() if FusedDecoderLayer.can_fuse(module)]
    memory = SharedMemory()
    return {
        layer: FusedDecoderLayer(layer, memory, is_last=layer is layers[-1]) for layer in layers
    }


def _norm_weights(norm: Any) -> NormWeights:
    return NormWeights(norm.scale, norm.epsilon)
