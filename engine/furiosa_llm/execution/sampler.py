"""Chooses the next token of each row of logits."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

import torch

from furiosa_llm.execution.random_draws import uniform
from furiosa_llm.execution.staging import to_device
from furiosa_llm.scheduler_output import SamplingInputs

NO_TOKEN = -1


def sample(
    logits: torch.Tensor,
    inputs: Sequence[SamplingInputs],
    forbidden: Mapping[int, torch.Tensor] | None = None,
) -> torch.Tensor:
    """Chooses one token per row. The host does not wait for the device.

    A row's token depends on its own logits and inputs alone. The filters apply in the order of
    transformers: penalties, biases, suppressed and forbidden tokens, temperature, top-k, top-p,
    min-p.

    Args:
        logits: [S, V] of any float type. It may be changed.
        inputs: S of them.
        forbidden: By row, [V] bool on the host: tokens that must not be chosen.

    Returns:
        [S] int64, on the device of the logits; `NO_TOKEN` for a row whose largest score is no
        finite number.
    """
    logits = logits.float()
    kinds = {id(entry.params): entry.params for entry in inputs}.values()  # most rows share theirs
    if any(params.has_penalties for params in kinds):
        _apply_penalties(logits, inputs)
    if any(params.logit_bias for params in kinds):
        _apply_biases(logits, inputs)
    _suppress(logits, inputs)
    for row, tokens in (forbidden or {}).items():
        logits[row].masked_fill_(to_device(tokens, logits.device), float("-inf"))
    largest, chosen = _largest(logits)
    groups = [] if all(params.is_greedy for params in kinds) else _groups(inputs, logits.shape[-1])
    for rows, num_ranks in groups:
        index = to_device(torch.tensor(rows), logits.device)
        drawn = _draw(logits[index], [inputs[row] for row in rows], num_ranks)
        chosen = chosen.index_copy(0, index, drawn)
    return chosen.masked_fill(~largest.isfinite(), NO_TOKEN)


def _largest(logits: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns the largest score of each row of [S, V], NaN where there is any, and its token."""
    if logits.device.type != "cpu":
        return torch.max(logits, dim=-1)
    # torch looks at one number after the other: ten times as long.
    chosen = torch.from_numpy(logits.numpy().argmax(axis=-1))
    return logits.gather(-1, chosen[:, None])[:, 0], chosen


def _groups(
    inputs: Sequence[SamplingInputs], vocab_size: int
) -> list[tuple[list[int], int | None]]:
    """Rows that draw at random, with how many of their likeliest tokens have to be ranked.

    How a row is treated follows from its own parameters: none ranked where no filter needs an
    order, the `top_k` likeliest, or all. Of equal scores, which come first depends on how many are
    ranked: rows of another `top_k` are another group.
    """
    groups: dict[int | None, list[int]] = {}
    for row, entry in enumerate(inputs):
        params = entry.params
        if params.is_greedy:
            continue
        num_ranks = None
        if params.top_k > 0:
            num_ranks = min(params.top_k, vocab_size)
        elif params.top_p < 1:
            num_ranks = vocab_size
        groups.setdefault(num_ranks, []).append(row)
    return [(rows, num_ranks) for num_ranks, rows in groups.items()]


def _draw(
    logits: torch.Tensor, inputs: Sequence[SamplingInputs], num_ranks: int | None
) -> torch.Tensor:
    """Draws one token per row of [s, V]: [s] int64."""
    params = [entry.params for entry in inputs]
    temperatures = _column([p.temperature for p in params], logits)
    order = None
    if num_ranks is not None:
        logits, order = logits.topk(num_ranks, dim=-1)  # likeliest first
    probabilities = (logits / temperatures).softmax(dim=-1)
    if order is not None:
        mass_before = probabilities.cumsum(dim=-1) - probabilities
        top_p = _column([p.top_p for p in params], logits)
        probabilities = probabilities.masked_fill(mass_before >= top_p, 0.0)
    floor = _column([p.min_p for p in params], logits) * probabilities.amax(dim=-1, keepdim=True)
    probabilities = probabilities.masked_fill(probabilities < floor, 0.0)
    # The inverse of the distribution function, at one draw per row.
    cumulative = probabilities.double().cumsum(dim=-1)
    draws = _column([uniform(entry.seed, entry.position) for entry in inputs], cumulative)
    chosen = torch.searchsorted(cumulative, draws * cumulative[:, -1:])
    chosen = chosen.clamp(max=cumulative.shape[-1] - 1)
    if order is not None:
        chosen = order.gather(-1, chosen)
    return chosen[:, 0]


def _apply_penalties(logits: torch.Tensor, inputs: Sequence[SamplingInputs]) -> None:
    """Lowers the scores of tokens seen before, in place."""
    rows: list[int] = []
    columns: list[int] = []
    factors: list[float] = []
    offsets: list[float] = []
    for row, entry in enumerate(inputs):
        if not entry.params.has_penalties:
            continue
        counts = Counter(entry.output_token_ids)
        for token_id in counts.keys() | set(entry.prompt_token_ids):
            count = counts[token_id]
            rows.append(row)
            columns.append(token_id)
            factors.append(entry.params.repetition_penalty)
            offsets.append(
                entry.params.frequency_penalty * count + entry.params.presence_penalty * (count > 0)
            )
    if not rows:
        return
    index = _places(rows, columns, logits.device)
    scores = logits[index]
    factor = to_device(torch.tensor(factors), logits.device)
    scores = torch.where(scores > 0, scores / factor, scores * factor)
    logits[index] = scores - to_device(torch.tensor(offsets), logits.device)


def _apply_biases(logits: torch.Tensor, inputs: Sequence[SamplingInputs]) -> None:
    """Adds what `logit_bias` says, in place."""
    biases = [
        (row, token_id, bias)
        for row, entry in enumerate(inputs)
        for token_id, bias in (entry.params.logit_bias or {}).items()
    ]
    if biases:
        rows, columns, added = zip(*biases, strict=True)
        logits[_places(rows, columns, logits.device)] += to_device(
            torch.tensor(added), logits.device
        )


def _suppress(logits: torch.Tensor, inputs: Sequence[SamplingInputs]) -> None:
    """Makes tokens impossible that may not be chosen yet, in place."""
    pairs = [
        (row, token_id)
        for row, entry in enumerate(inputs)
        for token_id in entry.suppressed_token_ids
        if token_id < logits.shape[-1]
    ]
    if pairs:
        rows, columns = zip(*pairs, strict=True)
        logits[_places(rows, columns, logits.device)] = float("-inf")


def _column(values: Sequence[float], like: torch.Tensor) -> torch.Tensor:
    """[s, 1] of the type and on the device of `like`."""
    return to_device(torch.tensor(values, dtype=like.dtype), like.device)[:, None]


def _places(
    rows: Sequence[int], columns: Sequence[int], device: torch.device
) -> tuple[torch.Tensor, torch.Tensor]:
    """[s] and [s] int64 on the device: single scores among the logits."""
    return to_device(torch.tensor(rows), device), to_device(torch.tensor(columns), device)
