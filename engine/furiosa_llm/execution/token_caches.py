"""The KV cache of a GPU: its memory, and what reads it."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from furiosa_llm.errors import ConfigError
from furiosa_llm.modeling import paged_attention
from furiosa_llm.modeling.gpu.attention import GpuAttention
from furiosa_llm.modeling.gpu.token_cache import TokenCache, token_bytes
from furiosa_llm.modeling.layer_shape import LayerShape
from furiosa_llm.modeling.paged_attention import AttentionLayer, CurrentStep


def block_bytes(shapes: Sequence[LayerShape], *, block_size: int, dtype: torch.dtype) -> int:
    """Returns the bytes that one block takes in all layers together."""
    return sum(token_bytes(shape, dtype) for shape in shapes) * block_size


def bind_token_caches(
    layers: Sequence[AttentionLayer],
    current_step: CurrentStep,
    *,
    num_blocks: int,
    block_size: int,
    dtype: torch.dtype,
    device: torch.device,
    attention: GpuAttention,
) -> list[TokenCache]:
    """Reserves the cache of every layer and lets the layers attend with it.

    There is one block more than asked for, the last one, which no request owns.

    Args:
        layers: Those that attend.
        current_step: Holds the layout of the step that they run.
        num_blocks: Blocks that requests own.
        block_size: Tokens in a block.
        dtype: Of keys and values.
        device: Where they lie.
        attention: What the layers attend with.

    Raises:
        ConfigError: The device has too little memory.
    """
    try:
        caches = [
            TokenCache.allocate(
                layer.shape,
                num_blocks=num_blocks + 1,
                block_size=block_size,
                dtype=dtype,
                device=device,
            )
            for layer in layers
        ]
    except torch.OutOfMemoryError as error:
        size = block_bytes([layer.shape for layer in layers], block_size=block_size, dtype=dtype)
        raise ConfigError(
            f"there is no memory on {device} for {num_blocks} KV-cache blocks of {size:,} bytes, "
            "though they seemed to fit: lower --gpu-memory-utilization or "
            "--paged-attention-num-blocks"
        ) from error
    paged_attention.bind(layers, caches, current_step, attention)
    return caches
