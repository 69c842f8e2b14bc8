"""How much of the prompts the prefix cache could spare, if it forgot nothing."""

from __future__ import annotations

from array import array
from collections.abc import Sequence

_MOST_KNOWN = 1 << 20  # blocks, some 100 MB; of later ones only those that are known count


class SharedPrefixes:
    """Counts the tokens that prompts begin with and earlier ones began with, too.

    Attributes:
        num_tokens: How many, in whole blocks; at the least, where there are very many prompts.
    """

    def __init__(self, block_size: int) -> None:
        self.num_tokens = 0
        self._block_size = block_size
        self._known: set[int] = set()

    def add(self, token_ids: Sequence[int]) -> None:
        """Counts a prompt. As in `KVCacheManager`, one token of it is left to compute."""
        tokens = array("i", token_ids)
        size = self._block_size
        block = 0  # the hash of it and of all before it
        is_shared = True
        for start in range(0, (len(tokens) - 1) // size * size, size):
            block = hash((block, tokens[start : start + size].tobytes()))
            is_shared = is_shared and block in self._known
            if is_shared:
                self.num_tokens += size
            elif len(self._known) < _MOST_KNOWN:
                self._known.add(block)
