"""A whole decoder layer as numba compiles it, for one thread or for several that work together."""

from __future__ import annotations

from typing import NamedTuple

import numba
import numpy as np
import numpy.typing as npt

from furiosa_llm.modeling.cpu.attention_kernel import Ints, attend
from furiosa_llm.modeling.cpu.barrier import Counter, wait_for_all
from furiosa_llm.modeling.cpu.cache_cells import Cells, pair_start
from furiosa_llm.modeling.cpu.layer_kernels import gate, normalize, rotate_and_store
from furiosa_llm.modeling.cpu.products import Rows, Weights, multiply, put_row, take_rows
from furiosa_llm.modeling.cpu.simd import Floats

Places = npt.NDArray[np.int64]


class NormWeights(NamedTuple):
    """Of an RMSNorm; no element for none."""

    scale: Floats  # [I]
    epsilon: float


class DecoderWeights(NamedTuple):
    """Of the layer: its norms and its products."""

    input_norm: NormWeights
    qkv: Weights
    query_norm: NormWeights  # of each head, and so is that of keys
    key_norm: NormWeights
    output: Weights
    mlp_norm: NormWeights
    gate_up: Weights
    down: Weights
    gated_size: int  # inputs of `down`


class DecoderAttention(NamedTuple):
    """What the attention of the layer is; see `attend`."""

    num_heads: int
    key_size: int
    block_size: int
    scaling: float
    sliding_window: int
    softcap: float
    sinks: Floats


class DecoderStep(NamedTuple):
    """Where the tokens of a step lie; see `StepLayout`."""

    cos: Floats  # [T, P]
    sin: Floats  # [T, P]
    slot_mapping: Places  # [T]
    tasks: Ints
    query_start_loc: Ints
    seq_lens: Ints
    block_tables: Ints
    heads_per_unit: int
    kept: Places  # [S], the tokens whose outputs are asked for; all of them but in the last layer


class DecoderMemory(NamedTuple):
    """What the threads write for each other."""

    rows: Rows  # from `rows_for`
    projected: Floats  # flat; so are the others
    attended: Floats
    changes: Floats
    counter: Counter


@numba.njit(nogil=True, error_model="numpy")
def run_layer(
    hidden: Floats,
    weights: DecoderWeights,
    attention: DecoderAttention,
    step: DecoderStep,
    blocks: Cells,
    memory: DecoderMemory,
    threads: tuple[int, int],
) -> None:
    """Replaces hidden [T, I] by the layer's output; keys and values go to `blocks`.

    x = x + attention(norm(x)), then x = x + down(silu(gate(norm(x))) * up(norm(x))).

    Args:
        hidden: Changed in place.
        weights: Of the layer.
        attention: Its settings.
        step: The tokens.
        blocks: See `LayerCache`.
        memory: All threads are given the same.
        threads: The place of this one among them, and how many they are.
    """
    share, num_shares = threads
    counter = memory.counter
    num_tokens, size = hidden.shape
    heads_size = attention.num_heads * attention.key_size
    qkv_size = heads_size + 2 * blocks.shape[1] * attention.key_size

    start, stop = num_tokens * share // num_shares, num_tokens * (share + 1) // num_shares
    rows = take_rows(memory.rows, num_tokens, size)
    values = np.empty(size, np.float32)
    for token in range(start, stop):
        _normalize(hidden[token], weights.input_norm, values)
        put_row(values, rows, token)
    wait_for_all(counter, num_shares)
    projected = memory.projected[: num_tokens * qkv_size].reshape(num_tokens, qkv_size)
    multiply(rows, weights.qkv, projected, share, num_shares)
    wait_for_all(counter, num_shares)
    first, end = pair_start(step.slot_mapping, start), pair_start(step.slot_mapping, stop)
    rotate_and_store(
        projected[first:end],
        attention.num_heads,
        attention.key_size,
        weights.query_norm.scale,
        weights.key_norm.scale,
        weights.query_norm.epsilon,
        step.cos[first:end],
        step.sin[first:end],
        step.slot_mapping[first:end],
        blocks,
        attention.block_size,
    )
    wait_for_all(counter, num_shares)
    attended = memory.attended[: num_tokens * heads_size].reshape(num_tokens, heads_size)
    attend(
        memory.projected,
        qkv_size,
        blocks,
        attended.reshape(num_tokens, attention.num_heads, attention.key_size),
        attention.key_size,
        attention.block_size,
        step.tasks,
        step.query_start_loc,
        step.seq_lens,
        step.block_tables,
        attention.scaling,
        attention.sliding_window,
        attention.softcap,
        attention.sinks,
        step.heads_per_unit,
        share,
        num_shares,
    )
    wait_for_all(counter, num_shares)

    # From here on, row i is that of token kept[i].
    num_kept = step.kept.shape[0]
    start, stop = num_kept * share // num_shares, num_kept * (share + 1) // num_shares
    changes = memory.changes[: num_kept * size].reshape(num_kept, size)
    rows = take_rows(memory.rows, num_kept, heads_size)
    for row in range(start, stop):
        put_row(attended[step.kept[row]], rows, row)
    wait_for_all(counter, num_shares)
    multiply(rows, weights.output, changes, share, num_shares)
    wait_for_all(counter, num_shares)
    rows = take_rows(memory.rows, num_kept, size)
    for row in range(start, stop):
        _add(hidden[step.kept[row]], changes[row])
        _normalize(hidden[step.kept[row]], weights.mlp_norm, values)
        put_row(values, rows, row)
    wait_for_all(counter, num_shares)
    gated_size = weights.gated_size
    gates = memory.projected[: num_kept * 2 * gated_size].reshape(num_kept, 2 * gated_size)
    multiply(rows, weights.gate_up, gates, share, num_shares)
    wait_for_all(counter, num_shares)
    rows = take_rows(memory.rows, num_kept, gated_size)
    gated = np.empty((1, gated_size), np.float32)
    for row in range(start, stop):
        both = gates[row : row + 1]
        gate(both[:, :gated_size], both[:, gated_size:], gated)
        put_row(gated[0], rows, row)
    wait_for_all(counter, num_shares)
    multiply(rows, weights.down, changes, share, num_shares)
    wait_for_all(counter, num_shares)
    for row in range(start, stop):
        _add(hidden[step.kept[row]], changes[row])


KERNELS = (run_layer,)


@numba.njit(nogil=True, fastmath=True, error_model="numpy", inline="always")
def _normalize(values: Floats, norm: NormWeights, output: Floats) -> None:
    normalize(values.reshape(1, -1), norm.scale, norm.epsilon, output.reshape(1, -1))


@numba.njit(nogil=True, inline="always")
def _add(values: Floats, changes: Floats) -> None:
    for i in range(values.shape[0]):
        values[i] += changes[i]
