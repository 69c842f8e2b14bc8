"""The tensors of one forward pass. The letters of shapes are those of `step_layout`."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from furiosa_llm.modeling.step_layout import QUERY_TILE, StepLayout
from furiosa_llm.scheduler_output import (
    PromptScoring,
    SamplingInputs,
    ScheduledRequest,
    SchedulerOutput,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class InputBatch:
    """The tensors of one forward pass, all on one device."""

    input_ids: torch.Tensor  # [T] int64
    positions: torch.Tensor  # [T] int64, position of each token in its request
    layout: StepLayout
    logits_indices: torch.Tensor  # [S + P] int64, tokens whose logits are sampled, then scored
    sampled_request_ids: tuple[int, ...]  # S of them, on the host
    sampling: tuple[SamplingInputs, ...]  # S of them, on the host
    scored_request_ids: tuple[int, ...]  # those with prompt tokens to score
    scoring: tuple[PromptScoring, ...]  # as many; P tokens in all

    @classmethod
    def build(cls, step: SchedulerOutput, *, block_size: int, device: torch.device) -> InputBatch:
        """Lays the tokens of all requests end to end."""
        requests = step.requests
        lengths = np.array([request.num_tokens for request in requests], np.int32)
        starts = np.array([request.start_position for request in requests], np.int32)
        query_start_loc = np.zeros(len(requests) + 1, np.int32)
        np.cumsum(lengths, out=query_start_loc[1:])
        input_ids = np.fromiter(
            (token for request in requests for token in request.token_ids),
            np.int64,
            count=int(query_start_loc[-1]),
        )
        offsets = np.arange(len(input_ids)) - np.repeat(query_start_loc[:-1], lengths)
        positions = np.repeat(starts, lengths) + offsets
        block_tables = _block_tables(requests)
        blocks = block_tables[np.repeat(np.arange(len(requests)), lengths), positions // block_size]
        slot_mapping = blocks.astype(np.int64) * block_size + positions % block_size
        sampled = [index for index, request in enumerate(requests) if request.samples_token]
        scored = [request for request in requests if request.scoring is not None]
        logits_indices = np.concatenate(
            [query_start_loc[1:][sampled] - 1, *_scored_indices(requests, query_start_loc)]
        )
        kept = np.unique(logits_indices.astype(np.int64))
        layout = StepLayout(
            slot_mapping=_tensor(slot_mapping, device),
            query_start_loc=_tensor(query_start_loc, device),
            seq_lens=_tensor(starts + lengths, device),
            block_tables=_tensor(block_tables, device),
            tasks=torch.from_numpy(_tasks(query_start_loc)),
            kept=_tensor(kept, device),
            kept_tasks=torch.from_numpy(_tasks_of_tokens(kept, query_start_loc)),
        )
        return cls(
            input_ids=_tensor(input_ids, device),
            positions=_tensor(positions.astype(np.int64), device),
            layout=layout,
            logits_indices=_tensor(logits_indices.astype(np.int64), device),
            sampled_request_ids=tuple(requests[index].request_id for index in sampled),
            sampling=tuple(
                request.sampling for request in requests if request.sampling is not None
            ),
            scored_request_ids=tuple(request.request_id for request in scored),
            scoring=tuple(request.scoring for request in scored if request.scoring is not None),
        )


def _scored_indices(
    requests: tuple[ScheduledRequest, ...], query_start_loc: np.ndarray
) -> list[np.ndarray]:
    """Places of the tokens whose logits tell how likely the next prompt token was."""
    return [
        int(start) + request.scoring.offset + np.arange(len(request.scoring.token_ids))
        for request, start in zip(requests, query_start_loc[:-1], strict=True)
        if request.scoring is not None
    ]


def _block_tables(requests: tuple[ScheduledRequest, ...]) -> np.ndarray:
    """[R, M] int32, padded with 0."""
    tables = np.zeros((len(requests), max(len(r.block_ids) for r in requests)), np.int32)
    for row, request in zip(tables, requests, strict=True):
        row[: len(request.block_ids)] = request.block_ids
    return tables


def _tasks(query_start_loc: np.ndarray) -> np.ndarray:
    """[*, 3] int32: each request's tokens, cut into tiles."""
    return np.array(
        [
            (request, start, min(start + QUERY_TILE, int(stop)))
            for request, (first, stop) in enumerate(
                zip(query_start_loc[:-1].tolist(), query_start_loc[1:].tolist(), strict=True)
            )
            for start in range(first, stop, QUERY_TILE)
        ],
        np.int32,
    )


def _tasks_of_tokens(tokens: np.ndarray, query_start_loc: np.ndarray) -> np.ndarray:
    """[*, 3] int32: single tokens."""
    requests = np.searchsorted(query_start_loc, tokens, side="right") - 1
    return np.stack([requests, tokens, tokens + 1], axis=1).astype(np.int32)


def _tensor(array: np.ndarray, device: torch.device) -> torch.Tensor:
    return torch.from_numpy(array).to(device)
