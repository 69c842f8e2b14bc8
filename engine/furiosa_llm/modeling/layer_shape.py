"""Sizes of what an attention layer keeps."""

from __future__ import annotations

from dataclasses import dataclass

_VALUE_MULTIPLE = 16  # elements that a kernel on a CPU handles at once


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerShape:
    """Sizes of one layer's keys and values."""

    num_kv_heads: int
    key_size: int
    value_size: int

    @property
    def padded_value_size(self) -> int:
        """Elements that lie between the values of two tokens."""
        return -(-self.value_size // _VALUE_MULTIPLE) * _VALUE_MULTIPLE

    @property
    def num_token_elements(self) -> int:
        """Numbers stored for each token."""
        return self.num_kv_heads * (self.key_size + self.padded_value_size)
