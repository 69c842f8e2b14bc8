"""Paged attention on a CPU, compiled by numba.

Each block is read once for all query heads that share it and for a tile of queries, and the
softmax is taken block by block without the scores ever being stored (online softmax, Milakov and
Gimelshein 2018; FlashAttention, Dao 2022).
"""

from __future__ import annotations

import math
from concurrent.futures import Future, ThreadPoolExecutor

import numba
import numpy as np
import numpy.typing as npt
import torch

from furiosa_llm.modeling.attention_params import AttentionParams
from furiosa_llm.modeling.layer_cache import LayerCache
from furiosa_llm.modeling.step_layout import QUERY_TILE, StepLayout

Floats = npt.NDArray[np.float32]
Ints = npt.NDArray[np.int32]

_NO_WINDOW = 2**31 - 1
_NO_SINKS = np.empty(0, np.float32)
_LOWEST = np.float32(-1e30)
_LOG2_E = np.float32(1.4426950408889634)
# 2**f = 1 + f * (P1 + f * (P2 + ...)) on [-0.5, 0.5], with a relative error of 1e-7.
_P1 = np.float32(0.6931471824645996)
_P2 = np.float32(0.24022650718688965)
_P3 = np.float32(0.055503569543361664)
_P4 = np.float32(0.009618056938052177)
_P5 = np.float32(0.0013390866806730628)
_P6 = np.float32(0.00015461447765119374)


class CpuAttention:
    """Paged attention on `num_threads` cores. See `AttentionBackend`."""

    def __init__(self, num_threads: int) -> None:
        self._num_threads = num_threads
        self._helpers = (
            ThreadPoolExecutor(num_threads - 1, "attention") if num_threads > 1 else None
        )

    def __call__(
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        cache: LayerCache,
        layout: StepLayout,
        params: AttentionParams,
    ) -> torch.Tensor:
        """Stores keys [T, K, D] and values [T, K, E], then attends: [T, H, D] -> [T, H, E]."""
        keys, values = cache.keys.numpy(), cache.values.numpy()
        store(keys, values, layout.slot_mapping.numpy(), _array(key), _array(value))
        output = torch.empty(*query.shape[:2], value.shape[-1])
        arguments = (
            _array(query),
            keys,
            values,
            output.numpy(),
            layout.tasks.numpy(),
            layout.query_start_loc.numpy(),
            layout.seq_lens.numpy(),
            layout.block_tables.numpy(),
            params.scaling,
            params.sliding_window or _NO_WINDOW,
            params.softcap or 0.0,
            _NO_SINKS if params.sinks is None else _array(params.sinks),
        )
        self._attend(arguments, num_units=layout.tasks.shape[0] * keys.shape[1])
        return output.to(query.dtype)

    def _attend(self, arguments: tuple[object, ...], num_units: int) -> None:
        num_threads = min(self._num_threads, num_units)

        def attend_share(first_unit: int) -> None:
            attend(*arguments, first_unit, num_threads)

        helping: list[Future[None]] = []
        if self._helpers is not None:
            helping = [self._helpers.submit(attend_share, i) for i in range(1, num_threads)]
        attend_share(0)
        for future in helping:
            future.result()


def _array(tensor: torch.Tensor) -> Floats:
    return tensor.detach().float().contiguous().numpy()


@numba.njit(nogil=True, fastmath=True)
def store(
    keys: Floats, values: Floats, slot_mapping: npt.NDArray[np.int64], key: Floats, value: Floats
) -> None:
    """Writes keys [T, K, D] and values [T, K, E] to their slots of [N, K, D, B], [N, K, B, E]."""
    block_size = keys.shape[3]
    for token in range(slot_mapping.shape[0]):
        block = slot_mapping[token] // block_size
        offset = slot_mapping[token] % block_size
        for head in range(key.shape[1]):
            for d in range(key.shape[2]):
                keys[block, head, d, offset] = key[token, head, d]
            for e in range(value.shape[2]):
                values[block, head, offset, e] = value[token, head, e]


@numba.njit(nogil=True, fastmath=True)
def attend(  # noqa: C901, PLR0913 - a kernel: loops nest, and arrays come one by one
    query: Floats,
    keys: Floats,
    values: Floats,
    output: Floats,
    tasks: Ints,
    query_start_loc: Ints,
    seq_lens: Ints,
    block_tables: Ints,
    scaling: float,
    sliding_window: int,
    softcap: float,
    sinks: Floats,
    first_unit: int,
    unit_stride: int,
) -> None:
    """Computes the units `first_unit`, `first_unit + unit_stride`, … of a step's attention.

    A unit is one task (up to `QUERY_TILE` queries of one request) and one key head. What a row of
    the output holds does not depend on the other rows.

    Args:
        query: [T, H, D].
        keys: [N, K, D, B], with the step's own keys already stored.
        values: [N, K, B, E], likewise.
        output: [T, H, E], written.
        tasks: [*, 3], request and token range [start, stop) within the step.
        query_start_loc: [R + 1].
        seq_lens: [R].
        block_tables: [R, M].
        scaling: Factor on the scores.
        sliding_window: Most keys that a query sees; the longest sequence if there is no window.
        softcap: Bound on the scores; 0 for none.
        sinks: [H], or [0] where the layer has none.
        first_unit: The first unit to compute.
        unit_stride: Distance to the next one.
    """
    num_kv_heads, block_size = keys.shape[1], keys.shape[3]
    key_size, value_size = keys.shape[2], values.shape[3]
    group_size = query.shape[1] // num_kv_heads
    max_rows = QUERY_TILE * group_size
    scores = np.empty(block_size, np.float32)
    exponents = np.empty(block_size, np.int32)
    powers = exponents.view(np.float32)
    row_max = np.empty(max_rows, np.float32)
    row_sum = np.empty(max_rows, np.float32)
    acc = np.empty((max_rows, value_size), np.float32)

    for unit in range(first_unit, tasks.shape[0] * num_kv_heads, unit_stride):
        task, kv_head = unit // num_kv_heads, unit % num_kv_heads
        request, start, stop = tasks[task, 0], tasks[task, 1], tasks[task, 2]
        # Position in the request of the step's first token of this request, less its place.
        shift = seq_lens[request] - query_start_loc[request + 1]
        num_rows = (stop - start) * group_size
        for row in range(num_rows):
            head = kv_head * group_size + row % group_size
            if sinks.shape[0] > 0:
                row_max[row], row_sum[row] = sinks[head], np.float32(1.0)
            else:
                row_max[row], row_sum[row] = _LOWEST, np.float32(0.0)
            acc[row, :] = np.float32(0.0)

        first_block = max(start + shift - sliding_window + 1, 0) // block_size
        for index in range(first_block, (stop - 1 + shift) // block_size + 1):
            block = block_tables[request, index]
            block_keys, block_values = keys[block, kv_head], values[block, kv_head]
            for row in range(num_rows):
                token = start + row // group_size
                position = token + shift - index * block_size  # of the query, within the block
                visible_stop = min(position + 1, block_size)
                visible_start = max(position - sliding_window + 1, 0)
                if visible_start >= visible_stop:
                    continue
                q = query[token, kv_head * group_size + row % group_size]
                _scores(q, block_keys, key_size, np.float32(scaling), np.float32(softcap), scores)

                block_max = row_max[row]
                for s in range(visible_start, visible_stop):
                    block_max = max(block_max, scores[s])
                _exponentiate(scores, block_max, exponents, powers)
                scores[:visible_start] = np.float32(0.0)
                scores[visible_stop:] = np.float32(0.0)
                block_sum = np.float32(0.0)
                for s in range(block_size):
                    block_sum += scores[s]

                shrink = np.float32(math.exp(row_max[row] - block_max))
                row_sum[row] = row_sum[row] * shrink + block_sum
                row_max[row] = block_max
                _add_values(acc[row], shrink, scores, block_values, value_size)

        for row in range(num_rows):
            token = start + row // group_size
            head = kv_head * group_size + row % group_size
            for e in range(value_size):
                output[token, head, e] = acc[row, e] / row_sum[row]


KERNELS = (store, attend)


@numba.njit(nogil=True, fastmath=True, inline="always")
def _scores(
    q: Floats,
    block_keys: Floats,
    key_size: int,
    scaling: np.float32,
    softcap: np.float32,
    scores: Floats,
) -> None:
    """Scores of one query [D] against a block of keys [D, B], four elements at a time."""
    block_size = scores.shape[0]
    scores[:] = np.float32(0.0)
    for d in range(0, key_size - 3, 4):
        q0, q1 = q[d] * scaling, q[d + 1] * scaling
        q2, q3 = q[d + 2] * scaling, q[d + 3] * scaling
        for s in range(block_size):
            scores[s] += (
                q0 * block_keys[d, s]
                + q1 * block_keys[d + 1, s]
                + q2 * block_keys[d + 2, s]
                + q3 * block_keys[d + 3, s]
            )
    for d in range(key_size - key_size % 4, key_size):
        q0 = q[d] * scaling
        for s in range(block_size):
            scores[s] += q0 * block_keys[d, s]
    if softcap > 0:
        for s in range(block_size):
            scores[s] = softcap * np.float32(math.tanh(scores[s] / softcap))


@numba.njit(nogil=True, fastmath=True, inline="always")
def _exponentiate(scores: Floats, largest: np.float32, exponents: Ints, powers: Floats) -> None:
    """Replaces each score s by e**(s - largest). `powers` is `exponents`, read as floats."""
    for s in range(scores.shape[0]):
        x = max((scores[s] - largest) * _LOG2_E, np.float32(-126.0))
        whole = np.floor(x + np.float32(0.5))
        f = x - whole
        exponents[s] = (np.int32(whole) + np.int32(127)) << np.int32(23)
        scores[s] = np.float32(1.0) + f * (
            _P1 + f * (_P2 + f * (_P3 + f * (_P4 + f * (_P5 + f * _P6))))
        )
    for s in range(scores.shape[0]):
        scores[s] *= powers[s]


@numba.njit(nogil=True, fastmath=True, inline="always")
def _add_values(
    acc: Floats, shrink: np.float32, weights: Floats, block_values: Floats, value_size: int
) -> None:
    """Acc [E] = acc * shrink + weights [B] @ block_values [B, E], four tokens at a time."""
    for e in range(value_size):
        acc[e] *= shrink
    for s in range(0, weights.shape[0], 4):  # B is a multiple of 16
        w0, w1, w2, w3 = weights[s], weights[s + 1], weights[s + 2], weights[s + 3]
        for e in range(value_size):
            acc[e] += (
                w0 * block_values[s, e]
                + w1 * block_values[s + 1, e]
                + w2 * block_values[s + 2, e]
                + w3 * block_values[s + 3, e]
            )
