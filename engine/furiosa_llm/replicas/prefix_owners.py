"""Which replica has computed which prefix."""

from __future__ import annotations

from array import array
from collections import OrderedDict
from collections.abc import Sequence
from hashlib import blake2b

MAX_PREFIXES = 2**16  # remembered, those used last
MAX_BLOCKS = 64  # of a prompt that are looked at


class PrefixOwners:
    """The replicas that were given a prompt with a prefix, and so have it in their caches.

    A prefix is known by a chain of hashes, one for each block, as in the cache itself. Replicas
    forget prefixes that they have no room for; this is a guess at what they still have.
    """

    def __init__(self, block_size: int | None) -> None:
        """Looks at whole blocks of `block_size` tokens; None for replicas without a cache."""
        self._block_size = block_size
        self._owners: OrderedDict[bytes, int] = OrderedDict()  # a bit for each replica

    def digests(self, token_ids: Sequence[int]) -> tuple[bytes, ...]:
        """Returns the hash of each prefix of whole blocks, the shortest first.

        The last token is left out: it is computed in any case.
        """
        if self._block_size is None:
            return ()
        digests: list[bytes] = []
        for index in range(min((len(token_ids) - 1) // self._block_size, MAX_BLOCKS)):
            start = index * self._block_size
            digest = blake2b(digests[-1] if digests else b"", digest_size=8)
            digest.update(array("i", token_ids[start : start + self._block_size]).tobytes())
            digests.append(digest.digest())
        return tuple(digests)

    def extra_tokens(self, digests: Sequence[bytes], replica: int) -> int:
        """Returns how many tokens this replica would compute that another has already."""
        owned = shared = 0
        for index, digest in enumerate(digests):
            owners = self._owners.get(digest, 0)
            if not owners:
                break
            shared = index + 1
            if owners >> replica & 1:
                owned = index + 1
        return (shared - owned) * (self._block_size or 0)

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
