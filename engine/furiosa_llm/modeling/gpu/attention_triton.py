"""Paged attention by Triton kernels of ours, for every variant and any size of blocks."""

from __future__ import annotations

import torch
import triton
from triton.errors import TritonError

from furiosa_llm.modeling.attention_params import AttentionParams
from furiosa_llm.modeling.gpu import triton_attention_kernels as triton_kernels
from furiosa_llm.modeling.gpu.token_cache import TokenCache
from furiosa_llm.modeling.step_layout import QUERY_TILE, StepLayout

# What an H100's registers hold at once, by the bytes of a number.
_MOST_ROWS = {2: 64, 4: 32}
_MOST_KEYS = {2: 64, 4: 32}
_NUM_WARPS = {2: 4, 4: 8}
_MOST_KEY_BYTES = 1 << 14
_SMALLEST_PRODUCT = 16  # rows, keys and columns that a matrix unit takes at least
_LARGEST_HEAD = 256
_NO_WINDOW = 2**31 - 1
_PROGRAMS_WANTED = 512  # about four for each multiprocessor of a large GPU
_KEYS_OF_PART = 256  # at least, or combining parts would cost more than it gains
_MOST_PARTS = 64


class TritonAttention:
    """Starts the kernels. See `PagedKernel`."""

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
            return _attend(query.contiguous(), cache, layout, params)
        except TritonError as error:
            raise RuntimeError(f"Triton: {error}") from error


def _attend(
    query: torch.Tensor, cache: TokenCache, layout: StepLayout, params: AttentionParams
) -> torch.Tensor:
    num_tokens, num_heads, key_size = query.shape
    _, block_size, num_kv_heads, value_size = cache.values.shape
    group_size = num_heads // num_kv_heads
    # Decodes alone, and all other steps: two kernels to compile.
    tile_size = 1 if layout.max_query_len == 1 else QUERY_TILE
    num_rows = min(_padded(tile_size * group_size), _MOST_ROWS[query.itemsize])
    num_runs = triton.cdiv(tile_size * group_size, num_rows)
    key_bytes = max(_padded(key_size), _padded(value_size)) * query.itemsize
    num_keys = min(_MOST_KEYS[query.itemsize], _MOST_KEY_BYTES // key_bytes)
    num_parts = 1
    if tile_size == 1:
        span = min(layout.block_tables.shape[1] * block_size, params.sliding_window or _NO_WINDOW)
        num_parts = num_parts_for(len(layout.tasks) * num_kv_heads * num_runs, span)
    output = query.new_empty(num_tokens, num_heads, value_size)
    parts, log_totals = output, output
    if num_parts > 1:
        parts = output.new_empty(num_parts, *output.shape, dtype=torch.float32)
        log_totals = parts.new_empty(num_parts, num_tokens, num_heads)
    triton_kernels.attend[(len(layout.tasks), num_kv_heads * num_runs, num_parts)](
        query,
        cache.keys,
        cache.values,
        parts,
        log_totals,
        layout.tasks,
        layout.query_start_loc,
        layout.seq_lens,
        layout.block_tables,
        query if params.sinks is None else params.sinks,
        params.scaling,
        params.softcap or 1.0,
        params.sliding_window or _NO_WINDOW,
        layout.block_tables.shape[1],
        num_tokens,
        num_heads,
        num_kv_heads,
        num_parts,
        group_size=group_size,
        key_size=key_size,
        value_size=value_size,
        block_size=block_size,
        num_rows=num_rows,
        num_keys=num_keys,
        padded_key_size=_padded(key_size),
        padded_value_size=_padded(value_size),
        is_divided=num_parts > 1,
        has_softcap=params.softcap is not None,
        has_sinks=params.sinks is not None,
        num_warps=_NUM_WARPS[query.itemsize],
    )
    if num_parts > 1:
        triton_kernels.combine[(num_tokens * num_heads,)](
            parts,
            log_totals,
            output,
            num_tokens * num_heads,
            value_size=value_size,
            padded_value_size=_padded(value_size),
            num_parts=num_parts,
        )
    return output


def _padded(size: int) -> int:
    """Returns the next size that a product can have: a power of two."""
    return max(1 << (size - 1).bit_length(), _SMALLEST_PRODUCT)


def num_parts_for(num_programs: int, span: int) -> int:
    """Returns among how many programs to divide the keys of a request.

    Args:
        num_programs: Those that there are without dividing.
        span: The most keys of a request.
    """
    wanted = min(_PROGRAMS_WANTED // num_programs, span // _KEYS_OF_PART, _MOST_PARTS)
    return 1 << wanted.bit_length() - 1 if wanted > 1 else 1  # a power of two, rounded down
