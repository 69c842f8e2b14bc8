"""A whole decoder layer as numba compiles it, for one thread or for several that work together."""

from __future__ import annotations

import numba
from numba.extending import register_jitable

from furiosa_llm.modeling.cpu.amx import HAS_AMX
from furiosa_llm.modeling.cpu.attention_kernel import attend
from furiosa_llm.modeling.cpu.barrier import wait_for_all
from furiosa_llm.modeling.cpu.cache_cells import Cells
from furiosa_llm.modeling.cpu.decoder_data import (
    DecoderAttention,
    DecoderMemory,
    DecoderStep,
    DecoderWeights,
)
from furiosa_llm.modeling.cpu.decoder_parts import finish, own_tokens, part_of, piece_of, project
from furiosa_llm.modeling.cpu.simd import Floats

# Tokens of a piece of work: what lies between its products stays in a core's own cache. 0 where
# tiles multiply: they do best with as many rows as there are.
PIECE_TOKENS = 0 if HAS_AMX else 84
_LEAST_TOKENS = 28  # of a thread; two tiles


@register_jitable
def splits_tokens(num_tokens: int, num_threads: int) -> bool:
    """Tells whether each thread computes tokens of its own, and not outputs of all tokens."""
    return PIECE_TOKENS > 0 and num_tokens >= _LEAST_TOKENS * num_threads


def scratch_rows(num_tokens: int, num_threads: int) -> int:
    """Returns for how many tokens in all the threads need memory for what lies between products."""
    return num_threads * PIECE_TOKENS if PIECE_TOKENS > 0 else num_tokens


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

    Where there are many tokens, each thread takes some of them from norm to norm, in pieces that
    stay in its core's cache, and waits for the others before and after attention alone. Of a few
    tokens it computes some outputs: weights would come to each core as often as there are threads.

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
    num_tokens, num_kept = hidden.shape[0], step.kept.shape[0]
    heads_size = attention.num_heads * attention.key_size
    qkv_size = heads_size + 2 * blocks.shape[1] * attention.key_size
    projected = memory.projected[: num_tokens * qkv_size].reshape(num_tokens, qkv_size)
    attended = memory.attended[: num_tokens * heads_size].reshape(num_tokens, heads_size)

    team, piece, scratch = threads, max(num_tokens, 1), 0
    tokens, kept = (0, num_tokens), (0, num_kept)
    if splits_tokens(num_tokens, num_shares):
        team, piece, scratch = (0, 1), PIECE_TOKENS, share * PIECE_TOKENS
        tokens = own_tokens(step.slot_mapping, threads)
        # What a thread leaves of a token is what it goes on with in the next layer.
        kept = tokens if num_kept == num_tokens else part_of(num_kept, threads)

    num_pieces = -(-(tokens[1] - tokens[0]) // piece)
    for index in range(num_pieces):
        part = piece_of(tokens, (index, num_pieces))
        project(hidden, weights, attention, step, blocks, memory, projected, part, scratch, team)
    wait_for_all(memory.counter, num_shares)
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
        memory.attention,
        share,
        num_shares,
    )
    wait_for_all(memory.counter, num_shares)
    num_pieces = -(-(kept[1] - kept[0]) // piece)
    for index in range(num_pieces):
        part = piece_of(kept, (index, num_pieces))
        finish(hidden, weights, step.kept, memory, attended, part, scratch, team)


KERNELS = (run_layer,)
