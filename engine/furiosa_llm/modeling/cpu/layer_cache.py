"""The keys and values of one attention layer on a CPU, in blocks."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from furiosa_llm.modeling.cpu import huge_pages
from furiosa_llm.modeling.layer_shape import LayerShape


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerCache:
    """Keys and values of N blocks of B tokens.

    All that a block holds lies together, head by head: a head's keys, then its values. A step
    reads whole blocks in no order, and memory gives long stretches much faster than short ones.
    Keys lie with the tokens of a block side by side, so that one query's scores against a block
    are computed for many tokens at once; values lie with the elements of a head side by side.
    Numbers are float32, or bfloat16 in pairs; see `cache_cells`.
    """

    blocks: torch.Tensor  # [N, K, D * B + B * E], E padded to a multiple of 16; pairs are half
    shape: LayerShape
    block_size: int

    @classmethod
    def allocate(
        cls,
        shape: LayerShape,
        *,
        num_blocks: int,
        block_size: int,
        dtype: torch.dtype = torch.float32,
    ) -> LayerCache:
        """Reserves the memory, whose pages are taken only as blocks are written.

        Args:
            shape: Of the layer; in pairs, keys have to be of an even size.
            num_blocks: N.
            block_size: B.
            dtype: Of the numbers.
        """
        head_span = (shape.key_size + shape.padded_value_size) * block_size
        is_paired = dtype == torch.bfloat16
        blocks = huge_pages.zeros(
            (num_blocks, shape.num_kv_heads, head_span // 2 if is_paired else head_span),
            np.int32 if is_paired else np.float32,
        )
        return cls(blocks=torch.from_numpy(blocks), shape=shape, block_size=block_size)

    @property
    def kind(self) -> tuple[LayerShape, int, torch.dtype]:
        """What caches have in common that are attended to with the same memory."""
        return self.shape, self.block_size, self.blocks.dtype

    @property
    def keys(self) -> torch.Tensor:
        """A view of the keys, [N, K, D, B], where they are floats."""
        keys = self.blocks[..., : self.shape.key_size * self.block_size]
        return keys.view(*keys.shape[:2], -1, self.block_size)

    @property
    def values(self) -> torch.Tensor:
        """A view of the values, [N, K, B, E], where they are floats."""
        values = self.blocks[..., self.shape.key_size * self.block_size :]
        rows = values.view(*values.shape[:2], self.block_size, -1)
        return rows[..., : self.shape.value_size]
