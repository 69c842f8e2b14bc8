"""The blocks of the KV cache: who holds them, and which still hold a known prefix."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable


class BlockPool:
    """Reference-counted blocks with a prefix cache among the free ones.

    A block that nobody holds stays findable by the hash of its tokens until it is handed out
    again. Blocks with nothing to find are handed out first, then those unused for longest.
    """

    def __init__(self, num_blocks: int) -> None:
        self.num_blocks = num_blocks
        self._num_holders = [0] * num_blocks
        self._free = OrderedDict[int, None].fromkeys(range(num_blocks))  # next to hand out first
        self._hash_of: dict[int, bytes] = {}
        self._block_of: dict[bytes, int] = {}

    @property
    def num_free_blocks(self) -> int:
        """Blocks that nobody holds."""
        return len(self._free)

    @property
    def num_used_blocks(self) -> int:
        """Blocks that at least one request holds."""
        return self.num_blocks - len(self._free)

    def is_free(self, block_id: int) -> bool:
        """Tells whether nobody holds the block."""
        return block_id in self._free

    def allocate(self, num_blocks: int) -> list[int]:
        """Hands out blocks that nobody holds. The caller has made sure that there are enough."""
        block_ids = []
        for _ in range(num_blocks):
            block_id, _ = self._free.popitem(last=False)
            self.forget(block_id)
            self._num_holders[block_id] = 1
            block_ids.append(block_id)
        return block_ids

    def share(self, block_ids: Iterable[int]) -> None:
        """Adds a holder to blocks found by `lookup`."""
        for block_id in block_ids:
            self._free.pop(block_id, None)
            self._num_holders[block_id] += 1

    def release(self, block_ids: Iterable[int]) -> None:
        """Takes a holder away. Of blocks given back together, the first is reused first."""
        for block_id in block_ids:
            self._num_holders[block_id] -= 1
            assert self._num_holders[block_id] >= 0, f"block {block_id} released twice"
            if self._num_holders[block_id] == 0:
                self._free[block_id] = None
                if block_id not in self._hash_of:
                    self._free.move_to_end(block_id, last=False)

    def lookup(self, block_hash: bytes) -> int | None:
        """Returns the block that holds the tokens of this hash, if there is one."""
        return self._block_of.get(block_hash)

    def remember(self, block_id: int, block_hash: bytes) -> None:
        """Makes a held block findable, unless another block with the same tokens is already."""
        if block_hash not in self._block_of and block_id not in self._hash_of:
            self._block_of[block_hash] = block_id
            self._hash_of[block_id] = block_hash

    def forget(self, block_id: int) -> None:
        """Makes a block unfindable."""
        block_hash = self._hash_of.pop(block_id, None)
        if block_hash is not None:
            del self._block_of[block_hash]

    def check_integrity(self, held_block_ids: Iterable[int]) -> None:
        """Asserts that the holders counted are those given: one entry for each holder of a block.

        For tests; it looks at every block.
        """
        num_holders = [0] * self.num_blocks
        for block_id in held_block_ids:
            num_holders[block_id] += 1
        assert num_holders == self._num_holders, "holders were lost or counted twice"
        assert set(self._free) == {i for i, n in enumerate(num_holders) if n == 0}
        assert {b: h for h, b in self._block_of.items()} == self._hash_of
