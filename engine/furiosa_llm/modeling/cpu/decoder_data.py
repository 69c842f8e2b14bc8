"""What the kernel of a decoder layer is given; see `decoder_kernel`."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from furiosa_llm.modeling.cpu.attention_kernel import Ints
from furiosa_llm.modeling.cpu.attention_memory import AttentionMemory
from furiosa_llm.modeling.cpu.barrier import Counter
from furiosa_llm.modeling.cpu.products import Rows, Weights
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
    """What the threads write for each other, and what each keeps for itself; see `scratch_rows`."""

    projected: Floats  # flat; so are the others
    attended: Floats
    rows: Rows  # from `rows_for`; of pieces, as what follows
    gates: Floats
    changes: Floats
    counter: Counter
    attention: AttentionMemory
