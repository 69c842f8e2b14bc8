"""Gives requests the blocks they need, and finds prefixes that are already computed."""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Sequence
from hashlib import blake2b

from furiosa_llm.engine_limits import CacheConfig
from furiosa_llm.request import Request, RequestAccount
from furiosa_llm.scheduling.block_pool import BlockPool
from furiosa_llm.scheduling.group_blocks import GroupBlocks


class KVCacheManager:
    """The blocks of each request, and the account of how many it held for how long.

    A full block is known by a hash of its tokens and of all tokens before it (a hash chain), so
    that equal prefixes share blocks. Only full blocks are shared: no block with two holders is
    ever written.
    """

    def __init__(self, config: CacheConfig) -> None:
        self.config = config
        self.pool = BlockPool(config.num_blocks)
        self._group_blocks = GroupBlocks()

    def find_prefix(self, request: Request) -> list[int]:
        """Returns the blocks that hold the request's leading tokens, possibly none.

        At least one token is left to compute, since its logits are needed.
        """
        if request.is_isolated or request.needs_prompt_logits:
            return []
        if not self.config.enable_prefix_caching:
            return []
        num_tokens = min(request.num_tokens - 1, request.num_known_tokens)
        num_blocks = num_tokens // self.config.block_size
        found = []
        for index in range(num_blocks):
            block_id = self.pool.lookup(self._block_hash(request, index))
            if block_id is None:
                break
            found.append(block_id)
        return found

    def try_start(
        self,
        request: Request,
        prefix: list[int],
        num_new_tokens: int,
        *,
        num_spare_blocks: int,
        now: float,
    ) -> bool:
        """Gives a waiting request its cached prefix and room for `num_new_tokens` more.

        Returns:
            False, with nothing changed, when fewer than `num_spare_blocks` would stay free.
        """
        num_computed_tokens = len(prefix) * self.config.block_size
        num_blocks = self.config.num_blocks_for(num_computed_tokens + num_new_tokens)
        num_taken = num_blocks - len(prefix) + sum(map(self.pool.is_free, prefix))
        if num_taken > self.pool.num_free_blocks - num_spare_blocks:
            return False
        self.pool.share(prefix)
        request.block_ids = (*prefix, *self.pool.allocate(num_blocks - len(prefix)))
        request.num_computed_tokens = num_computed_tokens
        request.num_findable_blocks = len(prefix)
        if request.account is None:
            request.account = RequestAccount(start_time=now)
        request.account.blocks_held_since = now
        request.account.num_shared_blocks = len(prefix)
        self._count_blocks(request, request.block_ids)
        self._remember_full_blocks(request, num_new_tokens)
        return True

    def try_grow(self, request: Request, num_new_tokens: int, *, now: float) -> bool:
        """Makes room for `num_new_tokens` more tokens of a running request.

        Returns:
            False, with nothing changed, when there are too few free blocks.
        """
        num_tokens = request.num_computed_tokens + num_new_tokens
        if num_tokens > len(request.block_ids) * self.config.block_size:
            num_new_blocks = self.config.num_blocks_for(num_tokens) - len(request.block_ids)
            if num_new_blocks > self.pool.num_free_blocks:
                return False
            self._account(request, now)
            new_block_ids = tuple(self.pool.allocate(num_new_blocks))
            request.block_ids += new_block_ids
            self._count_blocks(request, new_block_ids)
        self._remember_full_blocks(request, num_new_tokens)
        return True

    def free(self, request: Request, *, now: float) -> None:
        """Takes back every block of the request. Its prefix stays findable, the start longest."""
        self._account(request, now)
        self._group_blocks.remove(request)
        self.pool.release(reversed(request.block_ids))
        request.block_ids = ()
        request.num_computed_tokens = request.num_findable_blocks = 0

    def forget(self, block_ids: Iterable[int]) -> None:
        """Makes blocks unfindable: what they hold may be wrong."""
        for block_id in block_ids:
            self.pool.forget(block_id)

    def _account(self, request: Request, now: float) -> None:
        costs = request.costs
        costs.block_seconds += len(request.block_ids) * (now - costs.blocks_held_since)
        costs.blocks_held_since = now

    def _count_blocks(self, request: Request, new_block_ids: Sequence[int]) -> None:
        num_held = self._group_blocks.add(request, new_block_ids)
        request.costs.peak_blocks = max(request.costs.peak_blocks, num_held)

    def _remember_full_blocks(self, request: Request, num_new_tokens: int) -> None:
        """Makes the blocks findable that the coming step fills with tokens that are known.

        Requests of the same step may use them already (`SchedulerOutput`).
        """
        if not self.config.enable_prefix_caching:
            return
        num_tokens = request.num_computed_tokens + num_new_tokens
        if num_tokens < (request.num_findable_blocks + 1) * self.config.block_size:
            return  # it fills none
        stop = min(num_tokens, request.num_known_tokens) // self.config.block_size
        for index in range(request.num_findable_blocks, stop):
            self.pool.remember(request.block_ids[index], self._block_hash(request, index))
        request.num_findable_blocks = max(stop, request.num_findable_blocks)

    def _block_hash(self, request: Request, index: int) -> bytes:
        """Returns the hash of the request's block `index`, whose tokens are all known."""
        size = self.config.block_size
        while len(request.block_hashes) <= index:
            start = len(request.block_hashes) * size
            digest = blake2b(request.block_hashes[-1] if start else b"", digest_size=16)
            digest.update(array("q", request.token_ids(start, start + size)).tobytes())
            request.block_hashes += (digest.digest(),)
        return request.block_hashes[index]
