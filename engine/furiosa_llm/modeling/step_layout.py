"""Where the tokens of a step lie, as attention needs to know it.

Shapes use these letters, here and in every module that names shapes:

    T  tokens in the step, all requests end to end
    R  requests in the step
    S  requests that sample a token in the step, S <= R
    M  blocks in the longest block table of the step
    V  vocabulary size
    H  query heads        K  key and value heads
    D  size of a query and key head        E  size of a value head
    N  blocks in the cache        B  tokens in a block
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass

import torch

QUERY_TILE = 16  # tokens of one request that a piece of work holds at most


@dataclass(frozen=True, kw_only=True)
class StepLayout:
    """How the T tokens of a step belong to requests, and where their keys and values go."""

    slot_mapping: torch.Tensor  # [T] int64, block_id * B + offset of each token
    query_start_loc: torch.Tensor  # [R + 1] int32, request i owns tokens [loc[i], loc[i + 1])
    seq_lens: torch.Tensor  # [R] int32, tokens of each request once this step is done
    block_tables: torch.Tensor  # [R, M] int32, padded with 0; seq_lens says what counts
    tasks: torch.Tensor  # [*, 3] int32, request and token range of each piece of work
    key_start_loc: torch.Tensor | None = None  # [R + 1] int32, sums of seq_lens before each request
    max_query_len: int | None = None  # most tokens of one request; None if that is not known
    kept: torch.Tensor | None = None  # [*] int64, tokens whose logits are asked for; None for all
    kept_tasks: torch.Tensor | None = None  # [*, 3] int32, as `tasks`, for those tokens

    @functools.cached_property
    def all_tokens(self) -> torch.Tensor:
        """[T] int64."""
        return torch.arange(len(self.slot_mapping))

    @property
    def kept_part(self) -> tuple[torch.Tensor, torch.Tensor]:
        """The tasks of the tokens whose logits are asked for, and these tokens."""
        if self.kept is None or self.kept_tasks is None:
            return self.tasks, self.all_tokens
        return self.kept_tasks, self.kept


def make_layout(
    spans: Sequence[tuple[int, int]], *, block_size: int, device: torch.device
) -> StepLayout:
    """Lays out requests that compute the tokens [start, stop), for trials of what computes them.

    Blocks are given out in turn, so that no request's blocks lie side by side.
    """
    num_blocks = [-(-stop // block_size) for _, stop in spans]
    block_tables = torch.arange(max(num_blocks) * len(spans)).view(-1, len(spans)).t()
    slots, tasks, starts = [], [], [0]
    for index, (start, stop) in enumerate(spans):
        positions = torch.arange(start, stop)
        blocks = block_tables[index, positions // block_size]
        slots.append(blocks * block_size + positions % block_size)
        first = starts[-1]
        starts.append(first + stop - start)
        tasks += [
            (index, tile, min(tile + QUERY_TILE, starts[-1]))
            for tile in range(first, starts[-1], QUERY_TILE)
        ]
    seq_lens = torch.tensor([stop for _, stop in spans])

    def ints(values: torch.Tensor) -> torch.Tensor:
        return values.int().contiguous().to(device)

    return StepLayout(
        slot_mapping=torch.cat(slots).to(device),
        query_start_loc=ints(torch.tensor(starts)),
        seq_lens=ints(seq_lens),
        block_tables=ints(block_tables),
        tasks=ints(torch.tensor(tasks)),
        key_start_loc=ints(torch.cat([seq_lens.new_zeros(1), seq_lens.cumsum(0)])),
        max_query_len=max(stop - start for start, stop in spans),
    )
