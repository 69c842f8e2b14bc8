"""What lies between the products of a decoder layer, by Triton kernels of ours."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import ParamSpec, TypeVar

import torch
import triton
from triton.errors import TritonError

from furiosa_llm.modeling.gpu import triton_layer_kernels
from furiosa_llm.modeling.gpu.layer_kernels import GateKind
from furiosa_llm.modeling.gpu.token_cache import TokenCache

_P = ParamSpec("_P")
_R = TypeVar("_R")

_TYPES = frozenset({torch.bfloat16, torch.float16, torch.float32})
_LARGEST_ROW = 16384  # what the registers of one program hold
_LARGEST_HEAD = 1024
_NUMBERS_AT_ONCE = 1024  # eight for each thread of four warps
_PAIRS_AT_ONCE = 512


def _raising_runtime_errors(start: Callable[_P, _R]) -> Callable[_P, _R]:
    @functools.wraps(start)
    def started(*args: _P.args, **kwargs: _P.kwargs) -> _R:
        try:
            return start(*args, **kwargs)
        except TritonError as error:
            raise RuntimeError(f"Triton: {error}") from error

    return started


class TritonLayerKernels:
    """Starts the kernels. See `LayerKernels`."""

    @_raising_runtime_errors
    def normalize(
        self,
        inputs: torch.Tensor,
        weight: torch.Tensor,
        epsilon: float,
        *,
        adds_one: bool,
        rounds_first: bool,
    ) -> torch.Tensor | None:
        """One program for each row."""
        size = inputs.shape[-1]
        is_known = inputs.dtype in _TYPES and inputs.dtype == weight.dtype
        if not is_known or weight.shape != (size,) or not 0 < size <= _LARGEST_ROW:
            return None
        if inputs.stride(-1) != 1:
            inputs = inputs.contiguous()
        output = torch.empty_like(inputs)
        strides = _row_strides(inputs, output)
        if strides is None:
            inputs = inputs.contiguous()
            output = torch.empty_like(inputs)
            strides = _row_strides(inputs, output)
            assert strides is not None, "rows of contiguous memory have one stride"
        padded_size = triton.next_power_of_2(size)
        triton_layer_kernels.normalize[(inputs.numel() // size,)](
            inputs,
            weight,
            output,
            *strides,
            epsilon,
            size=size,
            padded_size=padded_size,
            adds_one=adds_one,
            rounds_first=rounds_first,
            num_warps=min(max(padded_size // 512, 1), 16),
        )
        return output

    @_raising_runtime_errors
    def gate(self, product: torch.Tensor, kind: GateKind) -> torch.Tensor | None:
        """One program for each row, or for each of its runs of columns."""
        if product.dtype not in _TYPES or product.shape[-1] % 2:
            return None
        product = product.contiguous()
        size = product.shape[-1] // 2
        output = product.new_empty(*product.shape[:-1], size)
        num_rows = product.numel() // (2 * size)
        num_columns = min(triton.next_power_of_2(size), _NUMBERS_AT_ONCE)
        triton_layer_kernels.gate[(num_rows, triton.cdiv(size, num_columns))](
            product, output, size, kind=kind, num_columns=num_columns
        )
        return output

    @_raising_runtime_errors
    def rotate(
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        cos: torch.Tensor,
        sin: torch.Tensor,
        *,
        halves: bool,
    ) -> tuple[torch.Tensor, torch.Tensor] | None:
        """One program for some heads of a token. What it returns lies token by token."""
        if not _can_rotate(query, key, cos, sin, halves=halves):
            return None
        _, num_heads, num_tokens, head_size = query.shape
        num_kv_heads = key.shape[1]
        half = cos.shape[-1] if halves else cos.shape[-1] // 2
        rotated_query = query.new_empty(1, num_tokens, num_heads, head_size)
        rotated_key = query.new_empty(1, num_tokens, num_kv_heads, head_size)
        padded_half = triton.next_power_of_2(half)
        num_rest = head_size - 2 * half
        heads_at_once = min(
            max(_PAIRS_AT_ONCE // padded_half, 1), triton.next_power_of_2(num_heads)
        )
        num_query_runs = triton.cdiv(num_heads, heads_at_once)
        num_runs = num_query_runs + triton.cdiv(num_kv_heads, heads_at_once)
        triton_layer_kernels.rotate[(num_tokens, num_runs)](
            query,
            key,
            rotated_query,
            rotated_key,
            cos,
            sin,
            query.stride(2),
            query.stride(1),
            key.stride(2),
            key.stride(1),
            cos.stride(1),
            sin.stride(1),
            num_heads,
            num_kv_heads,
            num_query_runs,
            head_size=head_size,
            half=half,
            second=0 if halves else half,
            heads_at_once=heads_at_once,
            padded_half=padded_half,
            padded_rest=triton.next_power_of_2(num_rest) if num_rest else 0,
        )
        return rotated_query.transpose(1, 2), rotated_key.transpose(1, 2)

    @_raising_runtime_errors
    def store(
        self, cache: TokenCache, slot_mapping: torch.Tensor, key: torch.Tensor, value: torch.Tensor
    ) -> bool:
        """One program for the keys of a token and one for its values, or for runs of them."""
        if not (_can_store(key, cache.keys) and _can_store(value, cache.values)):
            return False
        num_tokens, num_heads, key_size = key.shape
        value_size = value.shape[-1]
        widest = num_heads * max(key_size, value_size)
        num_columns = min(triton.next_power_of_2(widest), _NUMBERS_AT_ONCE)
        num_key_runs = triton.cdiv(num_heads * key_size, num_columns)
        num_runs = num_key_runs + triton.cdiv(num_heads * value_size, num_columns)
        triton_layer_kernels.store[(num_tokens, num_runs)](
            key,
            value,
            cache.keys,
            cache.values,
            slot_mapping,
            *key.stride()[:2],
            *value.stride()[:2],
            num_heads,
            num_key_runs,
            key_size=key_size,
            value_size=value_size,
            num_columns=num_columns,
        )
        return True


def _row_strides(
    inputs: torch.Tensor, output: torch.Tensor
) -> tuple[int, int, int, int, int] | None:
    """Numbers the rows of two tensors [*, I] of one shape by an outer and an inner index.

    Returns:
        How many inner ones there are; outer and inner stride of the first tensor, and those of
        the second; None if it takes more than two indices.
    """
    if output.stride(-1) != 1:
        return None
    merged: list[tuple[int, int, int]] = []
    for size, stride, output_stride in zip(
        inputs.shape[:-1], inputs.stride(), output.stride(), strict=False
    ):
        if size == 1:
            continue
        if merged:
            before, outer_stride, outer_output_stride = merged[-1]
            if (outer_stride, outer_output_stride) == (stride * size, output_stride * size):
                merged[-1] = (before * size, stride, output_stride)
                continue
        merged.append((size, stride, output_stride))
    if len(merged) > 2:
        return None
    outer, inner = [(1, 0, 0)] * (2 - len(merged)) + merged
    return inner[0], outer[1], inner[1], outer[2], inner[2]


def _can_rotate(
    query: torch.Tensor, key: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, *, halves: bool
) -> bool:
    if query.ndim != 4 or key.ndim != 4 or cos.ndim != 3:
        return False
    one, _, num_tokens, head_size = query.shape
    num_turned = cos.shape[-1] * (2 if halves else 1)
    return (
        one == 1
        and key.shape == (1, key.shape[1], num_tokens, head_size)
        and cos.shape == sin.shape == (1, num_tokens, cos.shape[-1])
        and 0 < num_turned <= head_size <= _LARGEST_HEAD
        and num_turned % 2 == 0
        and query.dtype == key.dtype
        and {query.dtype, cos.dtype, sin.dtype} <= _TYPES
        and all(tensor.stride(-1) == 1 for tensor in (query, key, cos, sin))
    )


def _can_store(new: torch.Tensor, cached: torch.Tensor) -> bool:
    """Tells whether [T, K, D] can be written to [N, B, K, D]."""
    return (
        new.dtype == cached.dtype
        and new.dtype in _TYPES
        and new.shape[1:] == cached.shape[2:]
        and new.stride(-1) == 1
        and cached.is_contiguous()
    )
