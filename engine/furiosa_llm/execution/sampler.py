"""Chooses the next token of each row of logits."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch

from furiosa_llm.execution.logits_processors import apply_biases, apply_penalties, suppress
from furiosa_llm.execution.staging import to_device
from furiosa_llm.execution.token_draws import draw
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
        apply_penalties(logits, inputs)
    if any(params.logit_bias for params in kinds):
        apply_biases(logits, inputs)
    suppress(logits, inputs)
    for row, tokens in (forbidden or {}).items():
        logits[row].masked_fill_(to_device(tokens, logits.device), float("-inf"))
    largest, chosen = _largest(logits)
    if not all(params.is_greedy for params in kinds):
        chosen = draw(logits, inputs, largest, chosen)
    return chosen.masked_fill(~largest.isfinite(), NO_TOKEN)


def _largest(logits: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns the largest score of each row of [S, V], NaN where there is any, and its token."""
    if logits.device.type != "cpu":
        return torch.max(logits, dim=-1)
    # torch looks at one number after the other: ten times as long.
    chosen = torch.from_numpy(logits.numpy().argmax(axis=-1))
    return logits.gather(-1, chosen[:, None])[:, 0], chosen
