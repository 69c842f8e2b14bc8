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
from dataclasses import dataclass

import torch

QUERY_TILE = 16  # tokens of one request that a piece of work on a CPU holds at most


@dataclass(frozen=True, kw_only=True)
class StepLayout:
    """How the T tokens of a step belong to requests, and where their keys and values go."""

    slot_mapping: torch.Tensor  # [T] int64, block_id * B + offset of each token
    query_start_loc: torch.Tensor  # [R + 1] int32, request i owns tokens [loc[i], loc[i + 1])
    seq_lens: torch.Tensor  # [R] int32, tokens of each request once this step is done
    block_tables: torch.Tensor  # [R, M] int32, padded with 0; seq_lens says what counts
    tasks: torch.Tensor  # [*, 3] int32, request and token range of each piece of work on a CPU
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
