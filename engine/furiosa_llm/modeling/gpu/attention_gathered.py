"""Paged attention in plain torch operations, many requests at a time, on any device.

It serves every variant and never makes the host wait, but it copies all keys and values that it
reads: it is for what no kernel serves, and what kernels are compared with.
"""

from __future__ import annotations

import torch

from furiosa_llm.modeling.attention_params import AttentionParams
from furiosa_llm.modeling.gpu.token_cache import TokenCache
from furiosa_llm.modeling.step_layout import QUERY_TILE, StepLayout

_GATHERED_ELEMENTS = 1 << 26  # of keys, values and scores at once: 256 MiB in float32


def attend_gathered(
    query: torch.Tensor, cache: TokenCache, layout: StepLayout, params: AttentionParams
) -> torch.Tensor:
    """Lets each request's queries attend to its own keys. [T, H, D] -> [T, H, E].

    A step's queries are cut into tiles of one request, and as many tiles as the memory for copies
    holds are computed at once. What is float64 is computed so, all else in float32.
    """
    num_tokens, num_heads, _ = query.shape
    _, block_size, num_kv_heads, value_size = cache.values.shape
    tile_size = min(layout.max_query_len or num_tokens, QUERY_TILE)
    span = layout.block_tables.shape[1] * block_size
    elements = span * (
        num_kv_heads * (cache.keys.shape[-1] + value_size) + 2 * num_heads * tile_size
    )
    tiles_at_once = max(_GATHERED_ELEMENTS // elements, 1)
    # The last row takes what tiles that are not full compute in excess.
    output = query.new_empty(num_tokens + 1, num_heads, value_size)
    for tiles in torch.split(layout.tasks, tiles_at_once):
        requests, starts, stops = tiles.long().unbind(1)
        tokens = starts[:, None] + torch.arange(tile_size, device=query.device)  # [u, t]
        is_query = tokens < stops[:, None]
        rows = torch.where(is_query, tokens, num_tokens)
        first_positions = layout.seq_lens[requests] - layout.query_start_loc[requests + 1]
        attended = _attend_tiles(
            query[tokens.clamp(max=num_tokens - 1)],
            tokens + first_positions[:, None],
            cache.keys[layout.block_tables[requests].long()].flatten(1, 2),
            cache.values[layout.block_tables[requests].long()].flatten(1, 2),
            layout.seq_lens[requests],
            params,
        )
        output.index_copy_(0, rows.flatten(), attended.flatten(0, 1).to(output.dtype))
    return output[:num_tokens]


def _attend_tiles(
    query: torch.Tensor,
    positions: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    seq_lens: torch.Tensor,
    params: AttentionParams,
) -> torch.Tensor:
    """Attends u tiles of t queries each to s keys and values.

    Args:
        query: [u, t, H, D].
        positions: [u, t], of the queries in their requests.
        keys: [u, s, K, D]; what lies after a request's last token belongs to others.
        values: [u, s, K, E], likewise.
        seq_lens: [u].
        params: The layer's.

    Returns:
        [u, t, H, E].
    """
    dtype = torch.promote_types(query.dtype, torch.float32)
    key_positions = torch.arange(keys.shape[1], device=query.device)
    is_own = key_positions < seq_lens[:, None]  # [u, s]
    # What is no number must not reach a sum, not even with a weight of zero.
    values = values.to(dtype).masked_fill(~is_own[:, :, None, None], 0)
    grouped = query.to(dtype).view(*query.shape[:2], keys.shape[2], -1, query.shape[3])
    scores = torch.einsum("utkgd,uskd->ukgts", grouped, keys.to(dtype)) * params.scaling
    if params.softcap is not None:
        scores = params.softcap * torch.tanh(scores / params.softcap)
    distance = positions[:, :, None] - key_positions  # [u, t, s]
    is_hidden = (distance < 0) | ~is_own[:, None]
    if params.sliding_window is not None:
        is_hidden |= distance >= params.sliding_window
    scores = scores.masked_fill(is_hidden[:, None, None], float("-inf"))
    if params.sinks is not None:
        sinks = params.sinks.to(dtype).view(1, *scores.shape[1:3], 1, 1)
        scores = torch.cat([scores, sinks.expand(*scores.shape[:-1], 1)], dim=-1)
    weights = scores.softmax(dim=-1)[..., : keys.shape[1]]
    return torch.einsum("ukgts,uske->utkge", weights, values).flatten(2, 3)
