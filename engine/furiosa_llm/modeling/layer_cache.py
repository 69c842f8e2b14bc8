"""The keys and values of one attention layer, in blocks."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerShape:
    """Sizes of one layer's keys and values."""

    num_kv_heads: int
    key_size: int
    value_size: int

    @property
    def num_token_elements(self) -> int:
        """Numbers stored for each token."""
        return self.num_kv_heads * (self.key_size + self.value_size)


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerCache:
    """Keys and values of N blocks of B tokens.

    Keys lie with the tokens of a block side by side, so that one query's scores against a block
    are computed for many tokens at once; values lie with the elements of a head side by side.
    """

    keys: torch.Tensor  # [N, K, D, B]
    values: torch.Tensor  # [N, K, B, E]

    @classmethod
    def allocate(
        cls, shape: LayerShape, *, num_blocks: int, block_size: int, device: torch.device
    ) -> LayerCache:
        """Reserves the memory; on a CPU, pages are taken only as blocks are written."""
        heads = (num_blocks, shape.num_kv_heads)
        return cls(
            keys=_zeros((*heads, shape.key_size, block_size), device),
            values=_zeros((*heads, block_size, shape.value_size), device),
        )

    @property
    def block_size(self) -> int:
        """Tokens in a block."""
        return self.keys.shape[-1]


def _zeros(shape: tuple[int, ...], device: torch.device) -> torch.Tensor:
    if device.type == "cpu":
        # Unlike torch.zeros, this leaves the pages untouched until they are written.
        return torch.from_numpy(np.zeros(shape, np.float32))
    return torch.zeros(shape, device=device)
