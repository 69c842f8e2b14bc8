"""Decoder layers that are computed by one kernel, from the fused modules that they consist of.

In a step with few tokens, what Python does for each layer takes a tenth of the time. So the first
of a row of layers computes all of them, and those behind it hand on what they are given.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from furiosa_llm.modeling.cpu import decoder_kernel
from furiosa_llm.modeling.cpu.attention import CpuAttention, attention_settings
from furiosa_llm.modeling.cpu.core_threads import CoreThreads
from furiosa_llm.modeling.cpu.decoder_data import (
    DecoderAttention,
    DecoderStep,
    DecoderWeights,
    NormWeights,
)
from furiosa_llm.modeling.cpu.decoder_memory import DecoderSizes, SharedMemory
from furiosa_llm.modeling.cpu.fused_attention import FusedAttention
from furiosa_llm.modeling.cpu.fused_modules import FusedGatedMlp, FusedRmsNorm
from furiosa_llm.modeling.cpu.fusion_trial import Call
from furiosa_llm.modeling.paged_attention import PagedLayer

_PARTS = {
    "input_layernorm": FusedRmsNorm,
    "self_attn": FusedAttention,
    "post_attention_layernorm": FusedRmsNorm,
    "mlp": FusedGatedMlp,
}


class FusedDecoderLayer(nn.Module):
    """x = x + attention(norm(x)), then x = x + mlp(norm(x)): a layer of a `FusedDecoder`.

    Attributes:
        weights: As the kernel takes them.
        sizes: Of what the kernel computes.
    """

    weights: DecoderWeights
    sizes: DecoderSizes

    def __init__(self, layer: nn.Module) -> None:
        """Takes over the parts of transformers' layer; see `can_fuse`."""
        super().__init__()
        for name in _PARTS:
            self.add_module(name, layer.get_submodule(name))
        self.take_weights()

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

    def take_weights(self) -> None:
        """Computes with the weights that its parts have now."""
        attention, mlp = self._attention, self._mlp
        self.weights = DecoderWeights(
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
        self.sizes = DecoderSizes(
            hidden=attention.qkv_proj.in_features,
            attended=attention.o_proj.in_features,
            projected=attention.qkv_proj.out_features,
            gated=mlp.down_proj.in_features,
            num_heads=attention.num_heads,
        )

    @property
    def paged(self) -> PagedLayer[Any]:
        """What its attention was bound to."""
        return PagedLayer.of(self._attention)

    def attention(self, block_size: int) -> DecoderAttention:
        """Returns the settings of its attention."""
        attention = self._attention
        return DecoderAttention(
            attention.num_heads,
            attention.head_size,
            block_size,
            *attention_settings(attention.params),
        )

    @property
    def _attention(self) -> Any:
        return self.self_attn

    @property
    def _mlp(self) -> Any:
        return self.mlp


class FusedDecoder(nn.Module):
    """Layers that follow each other, in one call.

    Attributes:
        threads: To compute with.
    """

    def __init__(self, layers: Sequence[nn.Module], memory: SharedMemory, *, is_last: bool) -> None:
        """Takes over the parts of layers.

        Args:
            layers: transformers' own, with fused parts.
            memory: Shared with other layers of the model.
            is_last: Whether only tokens whose logits are asked for are needed of the output.
        """
        super().__init__()
        self.layers = nn.ModuleList(FusedDecoderLayer(layer) for layer in layers)
        self.threads = CoreThreads(1)
        self._is_last = is_last
        self._memory = memory

    def forward(
        self,
        hidden_states: torch.Tensor,
        *_: object,
        position_embeddings: tuple[torch.Tensor, torch.Tensor],
        **__: object,
    ) -> torch.Tensor:
        """[1, T, I] -> [1, T, I]. transformers passes more, which `fusion` found not to matter."""
        output = hidden_states.clone()
        hidden = output[0].numpy()
        calls = self._calls(len(hidden), position_embeddings)

        def compute(share: int, num_shares: int) -> None:
            for call in calls:
                decoder_kernel.run_layer(hidden, *call, (share, num_shares))

        self.threads.share(compute, num_units=self.threads.num_threads)  # all meet at barriers
        return output

    def _calls(
        self, num_tokens: int, position_embeddings: tuple[torch.Tensor, torch.Tensor]
    ) -> list[tuple[Any, ...]]:
        """Returns what the kernel is given for each layer, between hidden states and threads."""
        layers: list[Any] = list(self.layers)
        steps: dict[tuple[int, bool], DecoderStep] = {}
        calls = []
        for layer in layers:
            paged = layer.paged
            is_last = self._is_last and layer is layers[-1]
            key = paged.cache.shape.num_kv_heads, is_last
            if key not in steps:
                steps[key] = _step(paged, position_embeddings, is_last=is_last)
            calls.append(
                (
                    layer.weights,
                    layer.attention(paged.cache.block_size),
                    steps[key],
                    paged.cache.blocks.numpy(),
                    self._memory.for_step(
                        layer.weights,
                        layer.sizes,
                        paged.cache,
                        num_tokens=num_tokens,
                        num_threads=self.threads.num_threads,
                    ),
                )
            )
        return calls


class ComputedBefore(nn.Module):
    """Stands for a layer that a `FusedDecoder` before it has computed."""

    def forward(self, hidden_states: torch.Tensor, *_: object, **__: object) -> torch.Tensor:
        """Returns what it is given."""
        return hidden_states


def fused_decoders(
    model: nn.Module, calls: Mapping[nn.Module, Call]
) -> dict[nn.Module, FusedDecoder | ComputedBefore]:
    """Returns the layers of a model that can be replaced, and what may compute the same.

    Args:
        model: With fused modules.
        calls: Of its layers; those that are given the same rotation can be computed together.
    """
    lists = [module for module in model.modules() if isinstance(module, nn.ModuleList)]
    rows = [
        list(row)
        for layers in lists
        for can_fuse, row in itertools.groupby(layers, lambda layer: _kind(layer, calls))
        if can_fuse is not None
    ]
    memory = SharedMemory()
    replacements: dict[nn.Module, FusedDecoder | ComputedBefore] = {}
    for row in rows:
        replacements[row[0]] = FusedDecoder(row, memory, is_last=row is rows[-1])
        replacements.update((layer, ComputedBefore()) for layer in row[1:])
    return replacements


def _kind(layer: nn.Module, calls: Mapping[nn.Module, Call]) -> int | None:
    """Returns what is equal for layers that can be computed together; None if it cannot be."""
    if layer not in calls or not FusedDecoderLayer.can_fuse(layer):
        return None
    return id(calls[layer].keywords.get("position_embeddings"))


def _step(
    paged: PagedLayer[Any],
    position_embeddings: tuple[torch.Tensor, torch.Tensor],
    *,
    is_last: bool,
) -> DecoderStep:
    layout = paged.layout
    assert isinstance(paged.backend, CpuAttention)
    cos, sin = position_embeddings
    tasks, kept = layout.kept_part if is_last else (layout.tasks, layout.all_tokens)
    return DecoderStep(
        cos[0].numpy(),
        sin[0].numpy(),
        layout.slot_mapping.numpy(),
        tasks.numpy(),
        layout.query_start_loc.numpy(),
        layout.seq_lens.numpy(),
        layout.block_tables.numpy(),
        paged.backend.heads_per_unit(len(tasks), paged.cache.shape.num_kv_heads),
        kept.numpy(),
    )


def _norm_weights(norm: Any) -> NormWeights:
    return NormWeights(norm.scale, norm.epsilon)
