"""Where the tokens of a step go, as numbers on the host. Shapes are those of `step_layout`."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np

from furiosa_llm.modeling.step_layout import QUERY_TILE
from furiosa_llm.scheduler_output import ScheduledRequest


def step_arrays(
    requests: Sequence[ScheduledRequest], *, block_size: int, num_columns: int | None = None
) -> dict[str, np.ndarray]:
    """Lays the tokens of all requests end to end.

    Args:
        requests: Each request's share of the step.
        block_size: Tokens in a block.
        num_columns: M; as many as the longest block table has if not given.

    Returns:
        By the names of `StepLayout`, its tensors; `input_ids`, `positions` [T] int64; and
        `logits_indices` [S + P] int64.
    """
    lengths = np.array([request.num_tokens for request in requests], np.int32)
    starts = np.array([request.start_position for request in requests], np.int32)
    query_start_loc = _sums(lengths)
    input_ids = np.fromiter(
        itertools.chain.from_iterable(request.token_ids for request in requests),
        np.int64,
        count=int(query_start_loc[-1]),
    )
    rows = np.repeat(np.arange(len(requests)), lengths)
    positions = starts[rows] + np.arange(len(input_ids)) - query_start_loc[rows]
    block_tables = _block_tables(requests, num_columns)
    blocks = block_tables[rows, positions // block_size]
    sampled = [index for index, request in enumerate(requests) if request.samples_token]
    logits_indices = np.concatenate(
        [query_start_loc[1:][sampled] - 1, *_scored_indices(requests, query_start_loc)]
    ).astype(np.int64)
    kept = np.unique(logits_indices)
    return {
        "input_ids": input_ids,
        "positions": positions.astype(np.int64),
        "logits_indices": logits_indices,
        "slot_mapping": blocks.astype(np.int64) * block_size + positions % block_size,
        "query_start_loc": query_start_loc,
        "key_start_loc": _sums(starts + lengths),
        "seq_lens": starts + lengths,
        "block_tables": block_tables,
        "tasks": _tasks(query_start_loc),
        "kept": kept,
        "kept_tasks": _tasks_of_tokens(kept, query_start_loc),
    }


def _sums(counts: np.ndarray) -> np.ndarray:
    """[R + 1] int32: what lies before each of R, and in all."""
    sums = np.zeros(len(counts) + 1, np.int32)
    np.cumsum(counts, out=sums[1:])
    return sums


def _scored_indices(
    requests: Sequence[ScheduledRequest], query_start_loc: np.ndarray
) -> list[np.ndarray]:
    """Places of the tokens whose logits tell how likely the next prompt token was."""
    return [
        int(start) + request.scoring.offset + np.arange(len(request.scoring.token_ids))
        for request, start in zip(requests, query_start_loc[:-1], strict=True)
        if request.scoring is not None
    ]


def _block_tables(requests: Sequence[ScheduledRequest], num_columns: int | None) -> np.ndarray:
    """[R, M] int32, padded with 0."""
    counts = np.array([len(request.block_ids) for request in requests])
    tables = np.zeros((len(requests), num_columns or counts.max()), np.int32)
    tables[np.arange(tables.shape[1]) < counts[:, None]] = np.fromiter(
        itertools.chain.from_iterable(request.block_ids for request in requests),
        np.int32,
        count=counts.sum(),
    )
    return tables


def _tasks(query_start_loc: np.ndarray) -> np.ndarray:
    """[*, 3] int32: each request's tokens, cut into tiles."""
    counts = -(-np.diff(query_start_loc) // QUERY_TILE)
    requests = np.repeat(np.arange(len(counts)), counts)
    tiles = np.arange(len(requests)) - _sums(counts)[requests]
    starts = query_start_loc[requests] + tiles * QUERY_TILE
    stops = np.minimum(starts + QUERY_TILE, query_start_loc[requests + 1])
    return np.stack([requests, starts, stops], axis=1).astype(np.int32)


def _tasks_of_tokens(tokens: np.ndarray, query_start_loc: np.ndarray) -> np.ndarray:
    """[*, 3] int32: single tokens."""
    requests = np.searchsorted(query_start_loc, tokens, side="right") - 1
    return np.stack([requests, tokens, tokens + 1], axis=1).astype(np.int32)
