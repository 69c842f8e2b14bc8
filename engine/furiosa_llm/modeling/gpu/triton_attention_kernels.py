"""Paged attention in Triton: the kernels that `attention_triton` starts.

`attend` computes some queries of one request, those of all heads that share a key head, with the
online softmax of FlashAttention (Dao et al., 2022): keys and values are read once. It can leave the
keys of a request to several programs, whose parts `combine` weighs and adds, as in Flash-Decoding
(Dao et al., 2023). Shapes are those of `step_layout`; P is the number of parts.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit(do_not_specialize=["window", "num_columns", "num_tokens", "num_parts"])
def attend(
    query,  # [T, H, D]
    keys,  # [N, B, K, D]
    values,  # [N, B, K, E]
    output,  # [P, T, H, E]
    log_totals,  # [P, T, H], logarithms of the sums of exponentials; written if divided
    tasks,  # [*, 3]
    query_start_loc,  # [R + 1]
    seq_lens,  # [R]
    block_tables,  # [R, num_columns]
    sinks,  # [H]
    scaling,
    softcap,
    window,
    num_columns,
    num_tokens,
    num_heads,
    num_kv_heads,
    num_parts,
    group_size: tl.constexpr,
    key_size: tl.constexpr,
    value_size: tl.constexpr,
    block_size: tl.constexpr,
    num_rows: tl.constexpr,
    num_keys: tl.constexpr,
    padded_key_size: tl.constexpr,
    padded_value_size: tl.constexpr,
    is_divided: tl.constexpr,
    has_softcap: tl.constexpr,
    has_sinks: tl.constexpr,
):
    """Grid: tasks; key heads for each run of rows of a task; parts.

    Row r of a task is its query r // group_size of head r % group_size. `num_keys` keys are read at
    once.
    """
    task = tasks + tl.program_id(0) * 3
    kv_head = tl.program_id(1) % num_kv_heads
    first_row = tl.program_id(1) // num_kv_heads * num_rows
    part = tl.program_id(2)
    request, start, stop = tl.load(task), tl.load(task + 1), tl.load(task + 2)
    first_position = tl.load(seq_lens + request) - tl.load(query_start_loc + request + 1)
    rows = first_row + tl.arange(0, num_rows)
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
    if has_sinks:  # noqa: SIM102 - known when compiled, unlike the part
        if part == 0:
            largest = tl.load(sinks + heads, mask=is_row, other=0.0).to(tl.float32)
            total += 1.0
    attended = tl.zeros([num_rows, padded_value_size], tl.float32)

    first_token = start + first_row // group_size
    end_token = tl.minimum(start + (first_row + num_rows - 1) // group_size + 1, stop)
    end = first_position + end_token
    begin = tl.maximum(first_position + first_token - window + 1, 0) // num_keys * num_keys
    if is_divided:
        part_size = tl.cdiv(tl.cdiv(end - begin, num_keys), num_parts) * num_keys
        begin += part * part_size
        end = tl.minimum(begin + part_size, end)
    for offset in range(begin, end, num_keys):
        key_positions = offset + tl.arange(0, num_keys)
        is_key = key_positions < end
        blocks = tl.load(
            block_tables + request * num_columns + key_positions // block_size,
            mask=is_key,
            other=0,
        )
        slots = blocks.to(tl.int64) * block_size + key_positions % block_size
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

    total = tl.where(total == 0.0, 1.0, total)  # a part may see nothing
    output_rows = query_rows + part * num_tokens.to(tl.int64) * num_heads
    tl.store(
        output + output_rows[:, None] * value_size + value_columns[None, :],
        (attended / total[:, None]).to(output.dtype.element_ty),
        mask=is_row[:, None] & (value_columns < value_size)[None, :],
    )
    if is_divided:
        tl.store(log_totals + output_rows, largest + tl.log(total), mask=is_row)


@triton.jit
def combine(
    parts,  # [P, *, E]
    log_totals,  # [P, *]
    output,  # [*, E]
    num_rows,
    value_size: tl.constexpr,
    padded_value_size: tl.constexpr,
    num_parts: tl.constexpr,
):
    """Weighs the parts of each row by what they have of the sum of exponentials. Grid: rows."""
    row = tl.program_id(0).to(tl.int64)
    part_rows = tl.arange(0, num_parts) * num_rows + row
    columns = tl.arange(0, padded_value_size)
    weights = tl.load(log_totals + part_rows)
    weights = tl.exp(weights - tl.max(weights, 0))
    attended = tl.load(
        parts + part_rows[:, None] * value_size + columns[None, :],
        mask=(columns < value_size)[None, :],
        other=0.0,
    )
    attended = tl.sum(attended * weights[:, None], 0) / tl.sum(weights, 0)
    tl.store(
        output + row * value_size + columns,
        attended.to(output.dtype.element_ty),
        mask=columns < value_size,
    )
