"""How many blocks the answers to one prompt hold together."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from furiosa_llm.request import Request


class GroupBlocks:
    """The blocks that the answers to each prompt hold, those that they share counted once."""

    def __init__(self) -> None:
        self._holders: dict[str, Counter[int]] = {}  # of each block; of prompts with many answers

    def add(self, request: Request, block_ids: Sequence[int]) -> int:
        """Takes note of blocks that a request, which has them already, has been given.

        Returns:
            How many blocks it and the other answers to its prompt hold now.
        """
        if request.sampling_params.num_drawn == 1:
            return len(request.block_ids)
        holders = self._holders.setdefault(request.group_id, Counter())
        holders.update(block_ids)
        return len(holders)

    def remove(self, request: Request) -> None:
        """Takes note that a request is about to give all of its blocks back."""
        holders = self._holders.get(request.group_id)
        if holders is None:
            return
        for block_id in request.block_ids:
            holders[block_id] -= 1
            if not holders[block_id]:
                del holders[block_id]
        if not holders:
            del self._holders[request.group_id]
