"""Draws tokens at random: by a kernel on a CPU, with torch's operations on other devices.

Both cut what top-k, top-p and min-p leave out by the least score that stays, so that tokens of the
same score are treated the same, and both draw in the order of token ids: a draw gives the same
token whatever is beside its row.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from furiosa_llm.execution.random_draws import uniform
from furiosa_llm.execution.staging import to_device
from furiosa_llm.modeling.cpu.draw_kernel import draw_tokens
from furiosa_llm.scheduler_output import SamplingInputs


def draw(
    logits: torch.Tensor,
    inputs: Sequence[SamplingInputs],
    largest: torch.Tensor,
    chosen: torch.Tensor,
) -> torch.Tensor:
    """Draws a token for each row that is not greedy. The host does not wait for a GPU.

    Args:
        logits: [S, V] float32.
        inputs: S of them, at least one not greedy.
        largest: [S], the largest score of each row.
        chosen: [S] int64, the tokens of greedy rows.

    Returns:
        [S], `chosen` with the drawn tokens; it may have been changed.
    """
    rows = [row for row, entry in enumerate(inputs) if not entry.params.is_greedy]
    if logits.device.type == "cpu":
        return draw_with_kernel(logits, inputs, rows, largest, chosen)
    return draw_with_torch(logits, inputs, rows, chosen)


def draw_with_kernel(
    logits: torch.Tensor,
    inputs: Sequence[SamplingInputs],
    rows: Sequence[int],
    largest: torch.Tensor,
    chosen: torch.Tensor,
) -> torch.Tensor:
    """See `draw`; `rows` are those that are not greedy."""
    entries = [inputs[row] for row in rows]
    params = [entry.params for entry in entries]
    draw_tokens(
        logits.contiguous().numpy(),
        largest.numpy(),
        np.array(rows),
        np.array([p.temperature for p in params], np.float32),
        np.array([p.top_k for p in params]),
        np.array([p.top_p for p in params], np.float32),
        np.array([p.min_p for p in params], np.float32),
        np.array([uniform(entry.seed, entry.position) for entry in entries]),
        chosen.numpy(),
    )
    return chosen


def draw_with_torch(
    logits: torch.Tensor,
    inputs: Sequence[SamplingInputs],
    rows: Sequence[int],
    chosen: torch.Tensor,
) -> torch.Tensor:
    """See `draw`; `rows` are those that are not greedy."""
    for members, num_ranks in _groups(inputs, rows, logits.shape[-1]):
        index = to_device(torch.tensor(members), logits.device)
        drawn = _draw_group(logits[index], [inputs[row] for row in members], num_ranks)
        chosen = chosen.index_copy(0, index, drawn)
    return chosen


def _draw_group(
    logits: torch.Tensor, inputs: Sequence[SamplingInputs], num_ranks: int | None
) -> torch.Tensor:
    """Returns a token for each row of [s, V], of which so many of the likeliest are ranked."""
    params = [entry.params for entry in inputs]
    temperatures = _column([p.temperature for p in params], logits)
    if num_ranks is not None:
        ranked = logits.topk(num_ranks, dim=-1).values  # likeliest first
        shares = (ranked / temperatures).softmax(dim=-1)
        mass_before = shares.cumsum(dim=-1) - shares
        top_p = _column([p.top_p for p in params], logits)
        stays = mass_before < top_p
        least = ranked.masked_fill(~stays, float("inf")).amin(dim=-1, keepdim=True)
        logits = logits.masked_fill(logits < least, float("-inf"))
    probabilities = (logits / temperatures).softmax(dim=-1)
    floor = _column([p.min_p for p in params], logits) * probabilities.amax(dim=-1, keepdim=True)
    probabilities = probabilities.masked_fill(probabilities < floor, 0.0)
    # The inverse of the distribution function, at one draw per row.
    cumulative = probabilities.double().cumsum(dim=-1)
    draws = _column([uniform(entry.seed, entry.position) for entry in inputs], cumulative)
    chosen = torch.searchsorted(cumulative, draws * cumulative[:, -1:])
    return chosen.clamp(max=cumulative.shape[-1] - 1)[:, 0]


def _groups(
    inputs: Sequence[SamplingInputs], rows: Sequence[int], vocab_size: int
) -> list[tuple[list[int], int | None]]:
    """Rows, with how many of their likeliest tokens are ranked; None where no order matters."""
    groups: dict[int | None, list[int]] = {}
    for row in rows:
        params = inputs[row].params
        num_ranks = None
        if params.top_k > 0:
            num_ranks = min(params.top_k, vocab_size)
        elif params.top_p < 1:
            num_ranks = vocab_size
        groups.setdefault(num_ranks, []).append(row)
    return [(members, num_ranks) for num_ranks, members in groups.items()]


def _column(values: Sequence[float], like: torch.Tensor) -> torch.Tensor:
    """[s, 1] of the type and on the device of `like`."""
    return to_device(torch.tensor(values, dtype=like.dtype), like.device)[:, None]
