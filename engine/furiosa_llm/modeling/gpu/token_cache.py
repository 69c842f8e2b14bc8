"""The keys and values of one attention layer, in blocks, as kernels on a GPU read them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

import torch

from furiosa_llm.modeling.layer_shape import LayerShape


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenCache:
    """Keys and values of N blocks of B tokens, token by token, in the model's own type."""

    keys: torch.Tensor  # [N, B, K, D]
    values: torch.Tensor  # [N, B, K, E]

    @classmethod
    def allocate(
        cls,
        shape: LayerShape,
        *,
        num_blocks: int,
        block_size: int,
        dtype: torch.dtype,
        device: torch.device,
    ) -> Self:
        """Reserves the memory.

        Raises:
            torch.OutOfMemoryError: The device has too little.
        """
        sizes = (num_blocks, block_size, shape.num_kv_heads)
        return cls(
            keys=torch.zeros(*sizes, shape.key_size, dtype=dtype, device=device),
            values=torch.zeros(*sizes, shape.value_size, dtype=dtype, device=device),
        )

    @property
    def block_size(self) -> int:
        """Tokens in a block."""
        return self.keys.shape[1]

    def store(self, slot_mapping: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> None:
        """Writes keys [T, K, D] and values [T, K, E] to the slots [T]. The host does not wait."""
        for cached, new in ((self.keys, key), (self.values, value)):
            cached.flatten(0, 1).index_copy_(0, slot_mapping, new.to(cached.dtype))


def token_bytes(shape: LayerShape, dtype: torch.dtype) -> int:
    """Returns the bytes that one token takes in a layer's `TokenCache`."""
    return shape.num_kv_heads * (shape.key_size + shape.value_size) * dtype.itemsize
