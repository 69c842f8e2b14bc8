"""How likely the model found tokens: its own distribution, before anything changes the scores."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch

from furiosa_llm.row_limits import MAX_LOGPROBS
from furiosa_llm.scheduler_output import PromptScoring, SamplingInputs, TokenLogprobs

_ROWS_AT_ONCE = 64  # as float32, with a vocabulary of 128 Ki tokens, 32 MiB


class ChosenLogprobs:
    """The model's scores of the rows whose log probabilities are asked for.

    They are kept before sampling, which changes the logits, and read once the tokens are chosen.
    """

    def __init__(self, logits: torch.Tensor, inputs: Sequence[SamplingInputs]) -> None:
        """Keeps the rows of `logits`, [S, V], that need it."""
        self._rows = [row for row, entry in enumerate(inputs) if entry.params.needs_logprobs]
        self._nums_top = [inputs[row].params.logprobs or 0 for row in self._rows]
        self._logits = logits[self._rows] if self._rows else None  # [s, V], a copy

    def of(self, token_ids: Sequence[int]) -> dict[int, TokenLogprobs]:
        """Returns, by row, the log probabilities in the places of the S chosen tokens."""
        if self._logits is None:
            return {}
        chosen = [token_ids[row] for row in self._rows]
        return dict(
            zip(self._rows, token_logprobs(self._logits, chosen, self._nums_top), strict=True)
        )


def prompt_logprobs(
    logits: torch.Tensor, scoring: Sequence[PromptScoring]
) -> Iterator[tuple[TokenLogprobs, ...]]:
    """Yields the log probabilities of each request's prompt tokens.

    Args:
        logits: [P, V], the requests' rows end to end.
        scoring: What to look up, in the same order.
    """
    start = 0
    for entry in scoring:
        stop = start + len(entry.token_ids)
        nums_top = [entry.num_top] * len(entry.token_ids)
        yield tuple(token_logprobs(logits[start:stop], entry.token_ids, nums_top))
        start = stop


def token_logprobs(
    logits: torch.Tensor, token_ids: Sequence[int], nums_top: Sequence[int]
) -> list[TokenLogprobs]:
    """Looks up a token in each row of logits, and the likeliest ones.

    Args:
        logits: [s, V] of any float type.
        token_ids: s of them.
        nums_top: How many of the likeliest to tell, for each row; at most 20.
    """
    found: list[TokenLogprobs] = []
    for start in range(0, len(token_ids), _ROWS_AT_ONCE):
        rows = slice(start, start + _ROWS_AT_ONCE)
        found += _look_up(logits[rows], token_ids[rows], nums_top[rows])
    return found


def _look_up(
    logits: torch.Tensor, token_ids: Sequence[int], nums_top: Sequence[int]
) -> Iterator[TokenLogprobs]:
    logprobs = logits.float().log_softmax(dim=-1)  # [s, V]
    chosen = torch.tensor(token_ids, device=logits.device)[:, None]
    own = logprobs.gather(-1, chosen)
    own_logprobs: list[float] = own[:, 0].tolist()
    ranks = ((logprobs > own).sum(dim=-1) + 1).tolist()
    top_logprobs: list[list[float]] = [[] for _ in token_ids]
    top_token_ids: list[list[int]] = [[] for _ in token_ids]
    if any(nums_top):
        # As many for every row, so that the order of equals does not depend on the batch.
        top = logprobs.topk(min(MAX_LOGPROBS, logits.shape[-1]), dim=-1)
        top_logprobs, top_token_ids = top.values.tolist(), top.indices.tolist()
    for row, token_id in enumerate(token_ids):
        yield TokenLogprobs(
            token_id=token_id,
            logprob=own_logprobs[row],
            rank=ranks[row],
            top_token_ids=tuple(top_token_ids[row][: nums_top[row]]),
            top_logprobs=tuple(top_logprobs[row][: nums_top[row]]),
        )
