"""Which replica has computed which prefix."""

from __future__ import annotations

from array import array
from collections import OrderedDict
from collections.abc import Sequence
from hashlib import blake2b
from typing import NamedTuple

MAX_PREFIXES = 2**16  # remembered, those used last
MAX_BLOCKS = 64  # of a prompt that are looked at


class PrefixCost(NamedTuple):
    """What a prompt costs a replica beside others; in order, the lowest first.

    Attributes:
        extra_tokens: Those that this replica would compute and another has already.
        minus_owned_tokens: Those that it has itself, negative: the more the better.
    """

    extra_tokens: int
    minus_owned_tokens: int


class PrefixOwners:
    """The replicas that were given a prompt with a prefix, and so have it in their caches.

    A prefix is known by a chain of hashes, one for each block, as in the cache itself. Replicas
    forget prefixes that they have no room for; this is a guess at what they still have.
    """

    def __init__(self, block_size: int | None) -> None:
        """Looks at whole blocks of `block_size` tokens; None for replicas without a cache."""
        self.block_size = block_size
        self._owners: OrderedDict[bytes, int] = OrderedDict()  # a bit for each replica

    def digests(self, token_ids: Sequence[int]) -> tuple[bytes, ...]:
        """Returns the hash of each prefix of whole blocks, the shortest first.

        The last token is left out: it is computed in any case.
        """
        if self.block_size is None:
            return ()
        digests: list[bytes] = []
        for index in range(min((len(token_ids) - 1) // self.block_size, MAX_BLOCKS)):
            start = index * self.block_size
            digest = blake2b(digests[-1] if digests else b"", digest_size=8)
            digest.update(array("i", token_ids[start : start + self.block_size]).tobytes())
            digests.append(digest.digest())
        return tuple(digests)

    def cost(self, digests: Sequence[bytes], replica: int) -> PrefixCost:
        """Returns what a prompt costs this replica, by what it and others have computed."""
        num_owned = num_known = 0  # blocks
        for number, digest in enumerate(digests, start=1):
            owners = self._owners.get(digest, 0)
            if not owners:
                break
            num_known = number
            if owners >> replica & 1:
                num_owned = number
        size = self.block_size or 0
        return PrefixCost((num_known - num_owned) * size, -num_owned * size)

    def add(self, digests: Sequence[bytes], replica: int) -> None:
        """Books that a replica computes a prompt."""
        for digest in digests:
            self._owners[digest] = self._owners.get(digest, 0) | 1 << replica
            self._owners.move_to_end(digest)
        while len(self._owners) > MAX_PREFIXES:
            self._owners.popitem(last=False)

    def forget(self, replica: int) -> None:
        """Books that a replica has lost its cache."""
        for digest, owners in self._owners.items():
            self._owners[digest] = owners & ~(1 << replica)
