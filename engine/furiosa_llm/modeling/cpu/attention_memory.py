"""Where the threads that attend keep what they work on."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from furiosa_llm.modeling.cpu import aligned
from furiosa_llm.modeling.cpu.cache_cells import PAIR_ROOM, Cells, inputs_for
from furiosa_llm.modeling.cpu.layer_cache import LayerCache
from furiosa_llm.modeling.cpu.simd import LANES, Floats
from furiosa_llm.modeling.step_layout import QUERY_TILE


class AttentionMemory(NamedTuple):
    """A row of each for each of N threads, with room for the queries of a task. See `attend`."""

    queries: Floats  # [N, *]
    query_inputs: Cells  # [N, *], from `inputs_for`, and so are the weights
    scores: Floats  # [N, *], against a block, of the queries of one key head
    weights: Cells  # [N, *]
    zeros: Floats  # [B], for all threads
    largest: Floats  # [N, *], see `take_scores`
    totals: Floats  # [N, *]
    sums: Floats  # [N, *]


def attention_memory(cache: LayerCache, num_heads: int, num_threads: int) -> AttentionMemory:
    """Reserves what threads need to attend to a cache with so many query heads."""
    shape = cache.shape
    num_queries = QUERY_TILE * num_heads
    queries = aligned.empty((num_threads, num_queries * shape.key_size + PAIR_ROOM))
    num_scores = num_queries // shape.num_kv_heads * cache.block_size
    scores = aligned.empty((num_threads, num_scores + PAIR_ROOM))
    blocks = cache.blocks.numpy()
    return AttentionMemory(
        queries=queries,
        query_inputs=inputs_for(blocks, queries),
        scores=scores,
        weights=inputs_for(blocks, scores),
        zeros=np.zeros(cache.block_size, np.float32),
        largest=aligned.empty((num_threads, num_queries)),
        totals=aligned.empty((num_threads, num_queries * LANES)),
        sums=aligned.empty((num_threads, num_queries * shape.padded_value_size)),
    )
