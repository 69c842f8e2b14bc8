"""Paged attention as a Triton kernel, for every variant and any size of blocks.

One program computes a tile of one request's queries, those of all heads that share a key head, with
the online softmax of FlashAttention (Dao et al., 2022): keys and values are read once, block by
block. It does not divide a long request among programs.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from triton.errors import TritonError

from furiosa_llm.modeling.attention_params import AttentionParams
from furiosa_llm.modeling.step_layout import QUERY_TILE, StepLayout
from furiosa_llm.modeling.token_cache import TokenCache

_MOST_KEYS = 64  # of one pass, no more than a block has
_SMALLEST_PRODUCT = 16
_LARGEST_HEAD = 256
_NO_WINDOW = 2**31 - 1


class TritonAttention:
    """Calls the kernel. See `PagedKernel`."""

    def serves(self, query: torch.Tensor, cache: TokenCache, params: AttentionParams) -> bool:
        """Tells whether the kernel knows the type and the sizes; it knows every variant."""
        del params
        is_known = query.dtype in (torch.bfloat16, torch.float16, torch.float32)
        largest = max(cache.keys.shape[-1], cache.values.shape[-1])
        return is_known and query.dtype == cache.keys.dtype and largest <= _LARGEST_HEAD

    def __call__(
        self, query: torch.Tensor, cache: TokenCache, layout: StepLayout, params: AttentionParams
    ) -> torch.Tensor:
        """Lets each request's queries attend to its own keys. [T, H, D] -> [T, H, E].

        Raises:
            RuntimeError: The kernel cannot be compiled for this device, or not with these sizes.
        """
        try:
            return self._attend(query.contiguous(), cache, layout, params)
        except TritonError as error:
            raise RuntimeError(f"Triton: {error}") from error

    @staticmethod
    def _attend(
        query: torch.Tensor, cache: TokenCache, layout: StepLayout, params: AttentionParams
    ) -> torch.Tensor:
        num_tokens, num_heads, key_size = query.shape
        _, block_size, num_kv_heads, value_size = cache.values.shape
        group_size = num_heads // num_kv_heads
        tile_size = 1 if layout.max_query_len == 1 else QUERY_TILE  # two kernels to compile
        output = query.new_empty(num_tokens, num_heads, value_size)
        _attend[(layout.tasks.shape[0], num_kv_heads)](
            query,
            cache.keys,
            cache.values,
            output,
            layout.tasks,
            layout.query_start_loc,
            layout.seq_lens,
            layout.block_tables,
            query if params.sinks is None else params.sinks,
            params.scaling,
            params.softcap or 1.0,
            params.sliding_window or _NO_WINDOW,
            layout.block_tables.shape[1],
            num_heads,
            num_kv_heads,
            group_size=group_size,
            key_size=key_size,
            value_size=value_size,
            block_size=block_size,
            num_rows=max(triton.next_power_of_2(tile_size * group_size), _SMALLEST_PRODUCT),
            num_keys=min(block_size, _MOST_KEYS),
            padded_key_size=max(triton.next_power_of_2(key_size), _SMALLEST_PRODUCT),
            padded_value_size=max(triton.next_power_of_2(value_size), _SMALLEST_PRODUCT),
            has_softcap=params.softcap is not None,
            has_sinks=params.sinks is not None,
        )
        return output


@triton.jit(do_not_specialize=["window", "num_columns"])
def _attend(
    query,
    keys,
    values,
    output,
    tasks,
    query_start_loc,
    seq_lens,
    block_tables,
    sinks,
    scaling,
    softcap,
    window,
    num_columns,
    num_heads,
    num_kv_heads,
    group_size: tl.constexpr,
    key_size: tl.constexpr,
    value_size: tl.constexpr,
    block_size: tl.constexpr,
    num_rows: tl.constexpr,
    num_keys: tl.constexpr,
    padded_key_size: tl.constexpr,
    padded_value_size: tl.constexpr,
    has_softcap: tl.constexpr,
    has_sinks: tl.constexpr,
):
    """Attends one tile with one key head. Row r is query r // group of head r % group."""
    task = tasks + tl.program_id(0) * 3
    kv_head = tl.program_id(1)
    request, start, stop = tl.load(task), tl.load(task + 1), tl.load(task + 2)
    first_position = tl.load(seq_lens + request) - tl.load(query_start_loc + request + 1)
    rows = tl.arange(0, num_rows)
    tokens = start + rows // group_size
    heads = kv_head * group_size + rows % group_size
    is_row = tokens < stop
    positions = first_position + tokens
    query_rows = (tokens * num_heads + heads).to(tl.int64)
    key_columns = tl.arange(0, padded_key_size)
    value_columns = tl.arange(0, padded_value_size)
    queries = tl.load(
        query + query_rows[:, None] * key_size + key_columns[None, :],
        mask=is_row[:, None] & (key_columns < key_size)[None, :],
        other=0.0,
    )
    largest = tl.full([num_rows], float("-inf"), tl.float32)
    total = tl.zeros([num_rows], tl.float32)
    if has_sinks:
        largest = tl.load(sinks + heads, mask=is_row, other=0.0).to(tl.float32)
        total += 1.0
    attended = tl.zeros([num_rows, padded_value_size], tl.float32)
    num_seen = first_position + stop
    first_seen = tl.maximum(first_position + start - window + 1, 0) // num_keys * num_keys
    for offset in range(first_seen, num_seen, num_keys):
        block = tl.load(block_tables + request * num_columns + offset // block_size).to(tl.int64)
        key_positions = offset + tl.arange(0, num_keys)
        is_key = key_positions < num_seen
        slots = block * block_size + offset % block_size + tl.arange(0, num_keys)
        slots = slots * num_kv_heads + kv_head
        key_tile = tl.load(
            keys + slots[None, :] * key_size + key_columns[:, None],
            mask=is_key[None, :] & (key_columns < key_size)[:, None],
            other=0.0,
        )
        scores = tl.dot(queries, key_tile, input_precision="ieee") * scaling
        if has_softcap:
            scores = softcap * (2.0 * tl.sigmoid(2.0 * scores / softcap) - 1.0)
        distance = positions[:, None] - key_positions[None, :]
        is_seen = (distance >= 0) & (distance < window) & is_key[None, :]
        scores = tl.where(is_seen, scores, float("-inf"))
        new_largest = tl.maximum(largest, tl.max(scores, 1))
        # Where nothing is seen yet, differences of infinities must not arise.
        base = tl.where(new_largest == float("-inf"), 0.0, new_largest)
        weights = tl.exp(scores - base[:, None])
        shrinks = tl.exp(largest - base)
        value_tile = tl.load(
            values + slots[:, None] * value_size + value_columns[None, :],
            mask=is_key[:, None] & (value_columns < value_size)[None, :],
            other=0.0,
        )
        total = total * shrinks + tl.sum(weights, 1)
        attended = attended * shrinks[:, None] + tl.dot(
            weights.to(value_tile.dtype), value_tile, input_precision="ieee"
        )
        largest = new_largest
    tl.store(
        output + query_rows[:, None] * value_size + value_columns[None, :],
        (attended / total[:, None]).to(output.dtype.element_ty),
        mask=is_row[:, None] & (value_columns < value_size)[None, :],
    )
