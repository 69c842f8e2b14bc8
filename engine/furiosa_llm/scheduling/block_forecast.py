"""How many blocks requests will come to hold together."""

from __future__ import annotations

from bisect import insort_left
from collections.abc import Iterable

from furiosa_llm.engine_limits import CacheConfig
from furiosa_llm.request import Request
from furiosa_llm.scheduling.answer_lengths import AnswerLengths


class BlockForecast:
    """Foresees the blocks that running requests grow into, until the last one has ended.

    Each step gives every request a token and now and then a block; each end gives blocks back.
    So the most are held just before one of them ends (compare Past-Future, Gong et al. 2025).
    """

    def __init__(
        self,
        config: CacheConfig,
        lengths: AnswerLengths,
        running: Iterable[Request],
        *,
        num_used_blocks: int,
    ) -> None:
        self._config = config
        self._lengths = lengths
        # Tokens that each is expected to gain, and tokens that lie in blocks of its own.
        self._growth: list[tuple[int, int]] = []  # those that end last come first
        self._num_shared_blocks = num_used_blocks
        for request in running:
            num_shared_blocks = request.costs.num_shared_blocks
            self._num_shared_blocks -= len(request.block_ids) - num_shared_blocks
            self._growth.append(self._growth_of(request, num_shared_blocks))
        self._growth.sort(reverse=True)

    def has_room_for(self, request: Request, *, num_cached_blocks: int, num_idle: int) -> bool:
        """Tells whether the blocks will suffice if one more request starts.

        Args:
            request: It waits.
            num_cached_blocks: Blocks that it finds in the prefix cache.
            num_idle: Those of them that nobody holds.
        """
        growth = list(self._growth)
        insort_left(growth, self._growth_of(request, num_cached_blocks), key=_negated)
        num_blocks = self._config.num_blocks - self._num_shared_blocks - num_idle
        num_held_tokens = 0
        for num_requests, (num_left, num_own_tokens) in enumerate(growth, start=1):
            num_held_tokens += num_own_tokens
            num_tokens = num_held_tokens + num_requests * num_left
            # The last block of each is half full, more or less.
            if num_tokens / self._config.block_size + num_requests / 2 > num_blocks:
                return False
        return True

    def _growth_of(self, request: Request, num_shared_blocks: int) -> tuple[int, int]:
        num_output_tokens = request.num_output_tokens + request.num_pending_tokens
        num_left = self._lengths.expected_tokens_left(num_output_tokens, request.max_tokens)
        return num_left, request.num_tokens - num_shared_blocks * self._config.block_size


def _negated(growth: tuple[int, int]) -> tuple[int, int]:
    return -growth[0], -growth[1]
