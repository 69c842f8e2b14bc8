"""How large the KV cache is, and its memory."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from furiosa_llm.config import EngineArgs
from furiosa_llm.errors import ConfigError
from furiosa_llm.memory_limits import free_memory_bytes, gib
from furiosa_llm.modeling.cpu.layer_cache import LayerCache
from furiosa_llm.modeling.layer_shape import LayerShape

CPU_MEMORY_SHARE = 0.5  # of what is available once the model is loaded
HEADROOM_BYTES = 2**28  # for what a step computes, and the answers


def block_bytes(shapes: Sequence[LayerShape], block_size: int, dtype: torch.dtype) -> int:
    """Returns the bytes that one block takes in all layers together."""
    return sum(shape.num_token_elements for shape in shapes) * block_size * dtype.itemsize


def choose_num_blocks(
    args: EngineArgs,
    shapes: Sequence[LayerShape],
    *,
    dtype: torch.dtype,
    max_model_len: int,
    max_num_seqs: int,
    available_bytes: int,
) -> int:
    """Returns the number given, else what free memory holds and the running requests can use.

    Raises:
        ConfigError: The memory holds fewer blocks than asked for, or not even one.
    """
    size = block_bytes(shapes, args.paged_attention_block_size, dtype)
    num_given = args.paged_attention_num_blocks
    usable_bytes = max(available_bytes - HEADROOM_BYTES, 0)
    if num_given is not None:
        if num_given * size > usable_bytes:
            raise ConfigError(
                f"paged_attention_num_blocks ({num_given}) needs {gib(num_given * size)}, but "
                f"{gib(available_bytes)} of memory are free, {gib(HEADROOM_BYTES)} of them for "
                f"what each step computes; at most {usable_bytes // size} blocks fit"
            )
        return num_given
    num_fitting = int(usable_bytes * CPU_MEMORY_SHARE) // size
    if num_fitting < 1:
        raise ConfigError(
            f"one KV-cache block takes {gib(size)}, but only {gib(available_bytes)} of memory "
            f"are free, {gib(HEADROOM_BYTES)} of them for what each step computes; lower "
            "--paged-attention-block-size or free some memory"
        )
    num_blocks_of_longest = -(-max_model_len // args.paged_attention_block_size)
    return min(num_fitting, num_blocks_of_longest * max_num_seqs)


def allocate(
    shapes: Sequence[LayerShape], *, dtype: torch.dtype, num_blocks: int, block_size: int
) -> list[LayerCache]:
    """Reserves the cache of every layer on a CPU.

    Raises:
        ConfigError: There is no memory for it.
    """
    try:
        return [
            LayerCache.allocate(shape, num_blocks=num_blocks, block_size=block_size, dtype=dtype)
            for shape in shapes
        ]
    except MemoryError as error:
        size = block_bytes(shapes, block_size, dtype)
        usable_bytes = max(free_memory_bytes() - HEADROOM_BYTES, 0)
        num_fitting = min(usable_bytes // size, num_blocks // 2)  # what is free may not be told
        raise ConfigError(
            f"there is no memory for {num_blocks} KV-cache blocks ({gib(num_blocks * size)}); "
            f"about {num_fitting} fit: lower --paged-attention-num-blocks"
        ) from error
