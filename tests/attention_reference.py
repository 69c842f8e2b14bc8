"""Paged attention in plain torch operations: slow, on any device, and easy to check.

It is the reference that the kernels are compared with.
"""

from __future__ import annotations

import pytest
import torch

from furiosa_llm.modeling.attention_params import AttentionParams
from furiosa_llm.modeling.cpu.layer_cache import LayerCache
from furiosa_llm.modeling.step_layout import StepLayout

# What models ask for: heads of queries and keys, sizes of keys and values, and the settings.
ATTENTION_VARIANTS = [
    pytest.param((4, 2), (32, 32), AttentionParams(scaling=0.2), id="grouped queries"),
    pytest.param((4, 4), (48, 24), AttentionParams(scaling=0.1), id="smaller values"),
    pytest.param((8, 1), (16, 16), AttentionParams(scaling=0.3), id="one key head"),
    pytest.param((4, 2), (16, 16), AttentionParams(scaling=0.3, sliding_window=20), id="window"),
    pytest.param((4, 2), (16, 16), AttentionParams(scaling=0.3, softcap=2.0), id="soft cap"),
    pytest.param(
        (4, 2),
        (16, 16),
        AttentionParams(scaling=0.3, sinks=torch.tensor([0.5, -1.0, 3.0, 0.0])),
        id="sinks",
    ),
]


def torch_attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    cache: LayerCache,
    layout: StepLayout,
    params: AttentionParams,
) -> torch.Tensor:
    """Stores the step's keys and values, then attends. See `AttentionBackend`."""
    store(cache, layout, key, value)
    return attend(query, cache, layout, params)


def store(cache: LayerCache, layout: StepLayout, key: torch.Tensor, value: torch.Tensor) -> None:
    """Writes the step's keys [T, K, D] and values [T, K, E] to their slots."""
    block_ids = layout.slot_mapping // cache.block_size
    offsets = layout.slot_mapping % cache.block_size
    cache.keys[block_ids, :, :, offsets] = key.to(cache.keys.dtype)
    cache.values[block_ids, :, offsets] = value.to(cache.values.dtype)


def attend(
    query: torch.Tensor, cache: LayerCache, layout: StepLayout, params: AttentionParams
) -> torch.Tensor:
    """Lets each request's queries attend to its own keys. [T, H, D] -> [T, H, E]."""
    output = query.new_empty(*query.shape[:2], cache.values.shape[-1])
    starts = layout.query_start_loc.tolist()
    for index, seq_len in enumerate(layout.seq_lens.tolist()):
        rows = slice(starts[index], starts[index + 1])
        block_ids = layout.block_tables[index, : -(-seq_len // cache.block_size)].long()
        keys = cache.keys[block_ids].permute(1, 0, 3, 2).flatten(1, 2)[:, :seq_len]
        values = cache.values[block_ids].transpose(0, 1).flatten(1, 2)[:, :seq_len]
        output[rows] = _attend_one(query[rows], keys, values, params)
    return output


def _attend_one(
    query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, params: AttentionParams
) -> torch.Tensor:
    """One request: query [t, H, D], keys [K, s, D], values [K, s, E] -> [t, H, E]."""
    num_queries, num_heads, _ = query.shape
    num_keys = keys.shape[1]
    group_size = num_heads // keys.shape[0]
    keys = keys.to(query.dtype).repeat_interleave(group_size, dim=0)
    values = values.to(query.dtype).repeat_interleave(group_size, dim=0)
    scores = torch.einsum("thd,hsd->hts", query, keys) * params.scaling
    if params.softcap is not None:
        scores = params.softcap * torch.tanh(scores / params.softcap)
    positions = torch.arange(num_keys, device=query.device)
    distance = positions[num_keys - num_queries :, None] - positions[None, :]
    hidden = distance < 0
    if params.sliding_window is not None:
        hidden |= distance >= params.sliding_window
    scores = scores.masked_fill(hidden, float("-inf"))
    if params.sinks is not None:
        sinks = params.sinks.to(scores.dtype)[:, None, None].expand(-1, num_queries, 1)
        scores = torch.cat([scores, sinks], dim=-1)
    probabilities = scores.softmax(dim=-1)[:, :, :num_keys]
    return torch.einsum("hts,hse->the", probabilities, values)
