"""Changes the scores of single tokens before one of them is chosen."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterable, Sequence

import numpy as np
import torch

from furiosa_llm.execution.staging import to_device
from furiosa_llm.scheduler_output import SamplingInputs


def apply_penalties(logits: torch.Tensor, inputs: Sequence[SamplingInputs]) -> None:
    """Lowers the scores of tokens seen before, in place."""
    seen = [
        (row, entry.params, *_tokens_seen(entry))
        for row, entry in enumerate(inputs)
        if entry.params.has_penalties
    ]
    if not seen:
        return

    def joined(parts: Iterable[np.ndarray]) -> torch.Tensor:
        return to_device(torch.from_numpy(np.concatenate(list(parts))), logits.device)

    index = (
        joined(np.full(len(tokens), row) for row, _, tokens, _ in seen),
        joined(tokens for _, _, tokens, _ in seen),
    )
    factor = joined(
        np.full(len(tokens), params.repetition_penalty, np.float32) for _, params, tokens, _ in seen
    )
    offset = joined(
        (params.frequency_penalty * counts + params.presence_penalty * (counts > 0)).astype(
            np.float32
        )
        for _, params, _, counts in seen
    )
    scores = logits[index]
    logits[index] = torch.where(scores > 0, scores / factor, scores * factor) - offset


def _tokens_seen(entry: SamplingInputs) -> tuple[np.ndarray, np.ndarray]:
    """Returns each token of a prompt and its answer once, and how often the answer has it."""
    answer = Counter(entry.output_token_ids)
    others = set(entry.prompt_token_ids).difference(answer)
    size = len(answer) + len(others)
    tokens = np.fromiter(itertools.chain(answer, others), np.int64, size)
    counts = np.zeros(size, np.int64)
    counts[: len(answer)] = list(answer.values())
    return tokens, counts


def apply_biases(logits: torch.Tensor, inputs: Sequence[SamplingInputs]) -> None:
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


def suppress(logits: torch.Tensor, inputs: Sequence[SamplingInputs]) -> None:
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


def _places(
    rows: Sequence[int], columns: Sequence[int], device: torch.device
) -> tuple[torch.Tensor, torch.Tensor]:
    """[s] and [s] int64 on the device: single scores among the logits."""
    return to_device(torch.tensor(rows), device), to_device(torch.tensor(columns), device)
