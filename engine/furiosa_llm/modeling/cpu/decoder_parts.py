"""What a decoder layer does for each token by itself, before and after attention."""

from __future__ import annotations

import numba
import numpy as np

from furiosa_llm.modeling.cpu.barrier import wait_for_all
from furiosa_llm.modeling.cpu.cache_cells import Cells, pair_start
from furiosa_llm.modeling.cpu.decoder_data import (
    DecoderAttention,
    DecoderMemory,
    DecoderStep,
    DecoderWeights,
    NormWeights,
    Places,
)
from furiosa_llm.modeling.cpu.layer_kernels import gate, normalize, rotate_and_store
from furiosa_llm.modeling.cpu.products import multiply, put_row, rows_from, take_rows
from furiosa_llm.modeling.cpu.simd import Floats


@numba.njit(nogil=True, error_model="numpy", inline="always")
def project(  # noqa: PLR0913 - a kernel: arrays come one by one
    hidden: Floats,
    weights: DecoderWeights,
    attention: DecoderAttention,
    step: DecoderStep,
    blocks: Cells,
    memory: DecoderMemory,
    projected: Floats,
    part: tuple[int, int],
    scratch: int,
    team: tuple[int, int],
) -> None:
    """Brings some tokens to rotated queries, and to keys and values in their slots.

    Args:
        hidden: See `run_layer`, and so on.
        weights: See there.
        attention: See there.
        step: See there.
        blocks: See there.
        memory: See there.
        projected: [T, (H + 2 * K) * D], written.
        part: The first token, and the one after the last.
        scratch: Where their place in the memory of pieces is.
        team: The place of this thread among those that compute them, and how many they are.
    """
    share, num_shares = team
    start, size = part[0], hidden.shape[1]
    num_tokens = part[1] - start
    rows = take_rows(rows_from(memory.rows, scratch), num_tokens, size)
    values = np.empty(size, np.float32)
    own = part_of(num_tokens, team)
    for row in range(own[0], own[1]):
        _normalize(hidden[start + row], weights.input_norm, values)
        put_row(values, rows, row)
    wait_for_all(memory.counter, num_shares)
    multiply(rows, weights.qkv, projected[start : part[1]], share, num_shares)
    wait_for_all(memory.counter, num_shares)
    own = own_tokens(step.slot_mapping[start : part[1]], team)
    first, stop = start + own[0], start + own[1]
    rotate_and_store(
        projected[first:stop],
        attention.num_heads,
        attention.key_size,
        weights.query_norm.scale,
        weights.key_norm.scale,
        weights.query_norm.epsilon,
        step.cos[first:stop],
        step.sin[first:stop],
        step.slot_mapping[first:stop],
        blocks,
        attention.block_size,
    )


@numba.njit(nogil=True, error_model="numpy", inline="always")
def finish(  # noqa: PLR0913 - likewise
    hidden: Floats,
    weights: DecoderWeights,
    kept: Places,
    memory: DecoderMemory,
    attended: Floats,
    part: tuple[int, int],
    scratch: int,
    team: tuple[int, int],
) -> None:
    """Brings some tokens that are kept from what they attended to to the layer's output.

    Args:
        hidden: See `run_layer`; changed.
        weights: See there.
        kept: See `DecoderStep`.
        memory: See `run_layer`.
        attended: [T, H * D].
        part: The first place in `kept`, and the one after the last.
        scratch: Where their place in the memory of pieces is.
        team: The place of this thread among those that compute them, and how many they are.
    """
    share, num_shares = team
    counter, gated_size = memory.counter, weights.gated_size
    size, heads_size = hidden.shape[1], attended.shape[1]
    num_tokens = part[1] - part[0]
    tokens = kept[part[0] : part[1]]
    own = part_of(num_tokens, team)
    memory_of_rows = rows_from(memory.rows, scratch)
    changes = memory.changes[scratch * size :][: num_tokens * size].reshape(num_tokens, size)
    gates = memory.gates[scratch * 2 * gated_size :][: num_tokens * 2 * gated_size]
    both = gates.reshape(num_tokens, 2 * gated_size)

    rows = take_rows(memory_of_rows, num_tokens, heads_size)
    for row in range(own[0], own[1]):
        put_row(attended[tokens[row]], rows, row)
    wait_for_all(counter, num_shares)
    multiply(rows, weights.output, changes, share, num_shares)
    wait_for_all(counter, num_shares)
    rows = take_rows(memory_of_rows, num_tokens, size)
    values = np.empty(size, np.float32)
    for row in range(own[0], own[1]):
        _add(hidden[tokens[row]], changes[row])
        _normalize(hidden[tokens[row]], weights.mlp_norm, values)
        put_row(values, rows, row)
    wait_for_all(counter, num_shares)
    multiply(rows, weights.gate_up, both, share, num_shares)
    wait_for_all(counter, num_shares)
    rows = take_rows(memory_of_rows, num_tokens, gated_size)
    gated = np.empty((1, gated_size), np.float32)
    for row in range(own[0], own[1]):
        gate(both[row : row + 1, :gated_size], both[row : row + 1, gated_size:], gated)
        put_row(gated[0], rows, row)
    wait_for_all(counter, num_shares)
    multiply(rows, weights.down, changes, share, num_shares)
    wait_for_all(counter, num_shares)
    for row in range(own[0], own[1]):
        _add(hidden[tokens[row]], changes[row])


@numba.njit(nogil=True, inline="always")
def part_of(size: int, team: tuple[int, int]) -> tuple[int, int]:
    """Returns which of so many are those of a thread."""
    return size * team[0] // team[1], size * (team[0] + 1) // team[1]


@numba.njit(nogil=True, inline="always")
def piece_of(span: tuple[int, int], place: tuple[int, int]) -> tuple[int, int]:
    """Returns one of so many parts of [start, stop)."""
    start, stop = part_of(span[1] - span[0], place)
    return span[0] + start, span[0] + stop


@numba.njit(nogil=True, inline="always")
def own_tokens(slot_mapping: Places, team: tuple[int, int]) -> tuple[int, int]:
    """Returns which tokens are those of a thread, so that no two write a pair of values."""
    start, stop = part_of(slot_mapping.shape[0], team)
    return pair_start(slot_mapping, start), pair_start(slot_mapping, stop)


@numba.njit(nogil=True, fastmath=True, error_model="numpy", inline="always")
def _normalize(values: Floats, norm: NormWeights, output: Floats) -> None:
    normalize(values.reshape(1, -1), norm.scale, norm.epsilon, output.reshape(1, -1))


@numba.njit(nogil=True, inline="always")
def _add(values: Floats, changes: Floats) -> None:
    for i in range(values.shape[0]):
        values[i] += changes[i]
