"""What a decoder layer does between its products, in Triton: what `layer_triton` starts.

Numbers are computed in float32, and rounded where transformers rounds them. R is the number of
rows, I that of numbers in one.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit(do_not_specialize=["num_inner"])
def normalize(
    inputs,  # [*, I], rows of any strides
    weight,  # [I]
    output,  # [*, I], likewise
    num_inner,
    outer_stride,
    inner_stride,
    output_outer_stride,
    output_inner_stride,
    epsilon,
    size: tl.constexpr,
    padded_size: tl.constexpr,
    adds_one: tl.constexpr,
    rounds_first: tl.constexpr,
):
    """Root mean square normalisation (Zhang and Sennrich 2019). Grid: rows."""
    outer = (tl.program_id(0) // num_inner).to(tl.int64)
    inner = (tl.program_id(0) % num_inner).to(tl.int64)
    columns = tl.arange(0, padded_size)
    is_column = columns < size
    row = tl.load(
        inputs + outer * outer_stride + inner * inner_stride + columns, mask=is_column, other=0.0
    ).to(tl.float32)
    scale = tl.load(weight + columns, mask=is_column, other=0.0).to(tl.float32)
    row *= tl.rsqrt(tl.sum(row * row, 0) / size + epsilon)
    if rounds_first:
        row = row.to(output.dtype.element_ty).to(tl.float32)
    if adds_one:
        scale += 1.0
    tl.store(
        output + outer * output_outer_stride + inner * output_inner_stride + columns,
        (row * scale).to(output.dtype.element_ty),
        mask=is_column,
    )


@triton.jit
def gate(
    product,  # [R, 2 * I], gates before what they are for
    output,  # [R, I]
    size,
    kind: tl.constexpr,
    num_columns: tl.constexpr,
):
    """activation(gate) * up, gated as in Shazeer 2020. Grid: rows; runs of columns."""
    row = tl.program_id(0).to(tl.int64)
    columns = tl.program_id(1) * num_columns + tl.arange(0, num_columns)
    is_column = columns < size
    start = product + row * size * 2
    x = tl.load(start + columns, mask=is_column, other=0.0).to(tl.float32)
    up = tl.load(start + size + columns, mask=is_column, other=0.0).to(tl.float32)
    if kind == "silu":
        activated = x * tl.sigmoid(x)
    elif kind == "gelu":
        activated = 0.5 * x * (1.0 + tl.erf(x * 0.7071067811865476))
    else:  # gelu_tanh: half of 1 + tanh(y) is the sigmoid of 2 y
        activated = x * tl.sigmoid(1.5957691216057308 * (x + 0.044715 * x * x * x))
    activated = activated.to(output.dtype.element_ty).to(tl.float32)
    tl.store(
        output + row * size + columns, (activated * up).to(output.dtype.element_ty), mask=is_column
    )


@triton.jit
def _rotate_heads(
    inputs,  # [H, D] of one token
    output,
    cos,  # [rotary_size] of that token
    sin,
    head_stride,
    output_head_stride,
    first_head,
    num_heads,
    head_size: tl.constexpr,
    half: tl.constexpr,
    second: tl.constexpr,
    heads_at_once: tl.constexpr,
    padded_half: tl.constexpr,
    padded_rest: tl.constexpr,
):
    heads = first_head + tl.arange(0, heads_at_once)
    columns = tl.arange(0, padded_half)
    is_column = columns < half
    mask = (heads < num_heads)[:, None] & is_column[None, :]
    places = inputs + heads[:, None] * head_stride + columns[None, :]
    targets = output + heads[:, None] * output_head_stride + columns[None, :]
    x1 = tl.load(places, mask=mask, other=0.0).to(tl.float32)
    x2 = tl.load(places + half, mask=mask, other=0.0).to(tl.float32)
    cos1 = tl.load(cos + columns, mask=is_column, other=0.0).to(tl.float32)[None, :]
    sin1 = tl.load(sin + columns, mask=is_column, other=0.0).to(tl.float32)[None, :]
    cos2 = tl.load(cos + second + columns, mask=is_column, other=0.0).to(tl.float32)[None, :]
    sin2 = tl.load(sin + second + columns, mask=is_column, other=0.0).to(tl.float32)[None, :]
    tl.store(targets, (x1 * cos1 - x2 * sin1).to(output.dtype.element_ty), mask=mask)
    tl.store(targets + half, (x2 * cos2 + x1 * sin2).to(output.dtype.element_ty), mask=mask)
    if padded_rest > 0:
        rest = 2 * half + tl.arange(0, padded_rest)
        rest_mask = (heads < num_heads)[:, None] & (rest < head_size)[None, :]
        tl.store(
            output + heads[:, None] * output_head_stride + rest[None, :],
            tl.load(inputs + heads[:, None] * head_stride + rest[None, :], mask=rest_mask),
            mask=rest_mask,
        )


@triton.jit(do_not_specialize=["num_query_runs"])
def rotate(
    query,  # [T, H, D], tokens and heads of any strides
    key,  # [T, K, D], likewise
    rotated_query,  # [T, H, D]
    rotated_key,  # [T, K, D]
    cos,  # [T, rotary_size], tokens of any stride
    sin,  # likewise
    query_token_stride,
    query_head_stride,
    key_token_stride,
    key_head_stride,
    cos_stride,
    sin_stride,
    num_heads,
    num_kv_heads,
    num_query_runs,
    head_size: tl.constexpr,
    half: tl.constexpr,
    second: tl.constexpr,
    heads_at_once: tl.constexpr,
    padded_half: tl.constexpr,
    padded_rest: tl.constexpr,
):
    """Rotary position embedding (Su et al. 2021). Grid: tokens; runs of heads, keys' last.

    Of each head, numbers j and half + j are a pair, turned with cos[j], sin[j] for the first and
    cos[second + j], sin[second + j] for the second; what comes after the pairs is copied.
    """
    token = tl.program_id(0).to(tl.int64)
    run = tl.program_id(1)
    if run < num_query_runs:
        _rotate_heads(
            query + token * query_token_stride,
            rotated_query + token * num_heads * head_size,
            cos + token * cos_stride,
            sin + token * sin_stride,
            query_head_stride,
            head_size,
            run * heads_at_once,
            num_heads,
            head_size,
            half,
            second,
            heads_at_once,
            padded_half,
            padded_rest,
        )
    else:
        _rotate_heads(
            key + token * key_token_stride,
            rotated_key + token * num_kv_heads * head_size,
            cos + token * cos_stride,
            sin + token * sin_stride,
            key_head_stride,
            head_size,
            (run - num_query_runs) * heads_at_once,
            num_kv_heads,
            head_size,
            half,
            second,
            heads_at_once,
            padded_half,
            padded_rest,
        )


@triton.jit
def _store_row(
    new,  # [K, D] of one token
    cached,  # [K * D], where it belongs
    head_stride,
    run,
    num_heads,
    head_size: tl.constexpr,
    num_columns: tl.constexpr,
):
    columns = run * num_columns + tl.arange(0, num_columns)
    is_column = columns < num_heads * head_size
    numbers = tl.load(
        new + columns // head_size * head_stride + columns % head_size, mask=is_column
    )
    tl.store(cached + columns, numbers.to(cached.dtype.element_ty), mask=is_column)


@triton.jit(do_not_specialize=["num_key_runs"])
def store(
    key,  # [T, K, D], tokens and heads of any strides
    value,  # [T, K, E], likewise
    keys,  # [N * B, K, D]
    values,  # [N * B, K, E]
    slots,  # [T]
    key_token_stride,
    key_head_stride,
    value_token_stride,
    value_head_stride,
    num_heads,
    num_key_runs,
    key_size: tl.constexpr,
    value_size: tl.constexpr,
    num_columns: tl.constexpr,
):
    """Writes keys and values of tokens to their slots. Grid: tokens; runs, values' last."""
    token = tl.program_id(0).to(tl.int64)
    slot = tl.load(slots + token).to(tl.int64)
    run = tl.program_id(1)
    if run < num_key_runs:
        _store_row(
            key + token * key_token_stride,
            keys + slot * num_heads * key_size,
            key_head_stride,
            run,
            num_heads,
            key_size,
            num_columns,
        )
    else:
        _store_row(
            value + token * value_token_stride,
            values + slot * num_heads * value_size,
            value_head_stride,
            run - num_key_runs,
            num_heads,
            value_size,
            num_columns,
        )
