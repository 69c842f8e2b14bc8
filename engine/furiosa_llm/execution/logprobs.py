"""How likely the model found tokens: its own distribution, before anything changes the scores."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch

from furiosa_llm.execution.staging import to_device, to_host
from furiosa_llm.row_limits import MAX_LOGPROBS
from furiosa_llm.scheduler_output import SamplingInputs, TokenLogprobs

_ROWS_AT_ONCE = 64  # as float32, with a vocabulary of 128 Ki tokens, 32 MiB


class ChosenLogits:
    """The model's scores of the rows whose log probabilities are asked for.

    They are kept before sampling, which changes the logits, and looked up once the tokens are
    chosen.
    """

    def __init__(self, logits: torch.Tensor, inputs: Sequence[SamplingInputs]) -> None:
        """Keeps the rows of `logits`, [S, V], that need it."""
        self.rows = [row for row, entry in enumerate(inputs) if entry.params.needs_logprobs]
        self._nums_top = [inputs[row].params.logprobs or 0 for row in self.rows]
        self._kept: tuple[torch.Tensor, torch.Tensor] | None = None  # [s] rows; [s, V], a copy
        if self.rows:
            index = to_device(torch.tensor(self.rows), logits.device)
            self._kept = index, logits[index]

    def look_up(self, token_ids: torch.Tensor) -> FoundLogprobs:
        """Looks up, in the rows that are kept, those of the S chosen tokens, [S] int64."""
        if self._kept is None:
            return FoundLogprobs(())
        index, logits = self._kept
        return FoundLogprobs.of(logits, token_ids[index], self._nums_top)


@dataclass(frozen=True, slots=True)
class FoundLogprobs:
    """Log probabilities of tokens, and the likeliest ones, on their way to the host."""

    parts: tuple[_Part, ...]

    @classmethod
    def of(
        cls, logits: torch.Tensor, token_ids: torch.Tensor, nums_top: Sequence[int]
    ) -> FoundLogprobs:
        """Looks up a token in each row of logits. The host does not wait.

        Args:
            logits: [s, V] of any float type.
            token_ids: [s] int64, on the same device.
            nums_top: How many of the likeliest to tell, for each row; at most 20.
        """
        parts = []
        for start in range(0, len(nums_top), _ROWS_AT_ONCE):
            rows = slice(start, start + _ROWS_AT_ONCE)
            parts.append(_Part.of(logits[rows], token_ids[rows], nums_top[rows]))
        return cls(tuple(parts))

    def read(self, token_ids: Sequence[int]) -> tuple[TokenLogprobs, ...]:
        """Returns what was found of the s tokens, once it is on the host."""
        remaining = iter(token_ids)
        return tuple(entry for part in self.parts for entry in part.read(remaining))


@dataclass(frozen=True, slots=True, kw_only=True)
class _Part:
    """A few rows; the tensors are on their way to the host."""

    nums_top: Sequence[int]
    logprobs: torch.Tensor  # [s] float32
    ranks: torch.Tensor  # [s] int64
    top_logprobs: torch.Tensor  # [s, t] float32, t = 0 where none are asked for
    top_token_ids: torch.Tensor  # [s, t] int64

    @classmethod
    def of(cls, logits: torch.Tensor, token_ids: torch.Tensor, nums_top: Sequence[int]) -> _Part:
        logprobs = logits.float().log_softmax(dim=-1)  # [s, V]
        own = logprobs.gather(-1, token_ids[:, None])
        # As many for every row, so that the order of equals does not depend on the batch.
        num_ranked = min(MAX_LOGPROBS, logits.shape[-1]) if any(nums_top) else 0
        top = logprobs.topk(num_ranked, dim=-1)
        return cls(
            nums_top=nums_top,
            logprobs=to_host(own[:, 0]),
            ranks=to_host((logprobs > own).sum(dim=-1) + 1),
            top_logprobs=to_host(top.values),
            top_token_ids=to_host(top.indices),
        )

    def read(self, token_ids: Iterator[int]) -> Iterator[TokenLogprobs]:
        rows = zip(
            self.nums_top,
            self.logprobs.tolist(),
            self.ranks.tolist(),
            self.top_logprobs.tolist(),
            self.top_token_ids.tolist(),
            strict=True,
        )
        for num_top, logprob, rank, top_logprobs, top_token_ids in rows:
            yield TokenLogprobs(
                token_id=next(token_ids),
                logprob=logprob,
                rank=rank,
                top_token_ids=tuple(top_token_ids[:num_top]),
                top_logprobs=tuple(top_logprobs[:num_top]),
            )
