"""Where the tokens of a step go, as numbers on the host. Shapes are those of `step_layout`."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence

import numpy as np

from furiosa_llm.modeling.step_layout import QUERY_TILE
from furiosa_llm.scheduler_output import ScheduledRequest


def step_arrays(
    requests: Sequence[ScheduledRequest], block_tables: np.ndarray, *, block_size: int
) -> dict[str, np.ndarray]:
    """Lays the tokens of all requests end to end.

    Args:
        requests: Each request's share of the step.
        block_tables: [R, M] int32, their blocks.
        block_size: Tokens in a block.

    Returns:
        By the names of `StepLayout`, its tensors, but for those of `kept_arrays`; `input_ids`,
        `positions` [T] int64; and `logits_indices` [S + P] int64.
    """
    lengths = np.array([len(request.token_ids) for request in requests], np.int32)
    starts = np.array([request.start_position for request in requests], np.int32)
    query_start_loc = _sums(lengths)
    input_ids = np.fromiter(
        itertools.chain.from_iterable(request.token_ids for request in requests),
        np.int64,
        count=int(query_start_loc[-1]),
    )
    rows = np.repeat(np.arange(len(requests)), lengths)
    positions = starts[rows] + np.arange(len(input_ids)) - query_start_loc[rows]
    blocks = block_tables[rows, positions // block_size]
    sampled = [index for index, request in enumerate(requests) if request.sampling is not None]
    logits_indices = np.concatenate(
        [query_start_loc[1:][sampled] - 1, *_scored_indices(requests, query_start_loc)]
    ).astype(np.int64)
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
    }


def kept_arrays(arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Returns which tokens the logits are asked for, by the names of `StepLayout`.

    Layers on a CPU need to know.

    Args:
        arrays: Those of the step.
    """
    kept = np.unique(arrays["logits_indices"])
    return {"kept": kept, "kept_tasks": _tasks_of_tokens(kept, arrays["query_start_loc"])}


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
