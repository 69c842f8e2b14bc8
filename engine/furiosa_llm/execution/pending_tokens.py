"""Fills in tokens that were still being chosen when a step was scheduled."""

from __future__ import annotations

import dataclasses
import functools
from collections import defaultdict, deque
from collections.abc import Mapping, Sequence
from typing import Protocol

import torch

from furiosa_llm.execution.staging import to_device
from furiosa_llm.request import PENDING_TOKEN_ID
from furiosa_llm.scheduler_output import SamplingInputs, ScheduledRequest, SchedulerOutput

Place = tuple[int, int]  # request id, position in prompt plus answer


class StepTokens(Protocol):
    """The tokens of a step's S sampled rows. See `LaunchedStep`."""

    @property
    def token_ids(self) -> torch.Tensor:
        """[S] int64, on the device, which may not have computed them yet; none is negative."""

    def wait_for_token_ids(self) -> list[int]:
        """Waits for the device, and returns them."""


class PendingTokens:
    """The tokens that the last steps choose, by request and position.

    They go from step to step on the device. The host waits for those that it needs itself: to count
    the tokens of an answer for its penalties, or to go on in its grammar.
    """

    def __init__(self, num_steps: int) -> None:
        """Keeps the tokens of the last `num_steps` steps: as many as may be in flight."""
        self._chosen: deque[_Chosen] = deque(maxlen=num_steps)  # the latest first

    def fill_in(self, step: SchedulerOutput, input_ids: torch.Tensor) -> None:
        """Writes pending tokens to their places in a step's [T] tokens. The host does not wait."""
        moves: defaultdict[_Chosen, list[tuple[int, int]]] = defaultdict(list)  # from row, to token
        end = 0
        for share in step.requests:
            end += share.num_tokens
            for back in _pending(share.token_ids):
                place = _place(share, back)
                chosen = self._that_chose(place)
                moves[chosen].append((chosen.rows[place], end - back))
        for chosen, pairs in moves.items():
            rows, indices = to_device(torch.tensor(pairs).T.contiguous(), input_ids.device)
            input_ids.index_copy_(0, indices, chosen.tokens.token_ids[rows])

    def sampling(self, step: SchedulerOutput) -> tuple[SamplingInputs, ...]:
        """Returns how to choose the new tokens of a step, with every token known.

        The host waits for a step before only if its tokens are among them.
        """
        return tuple(
            self._known(share, share.sampling)
            for share in step.requests
            if share.sampling is not None
        )

    def remember(self, step: SchedulerOutput, tokens: StepTokens) -> None:
        """Keeps what a step chooses, for steps that are scheduled before that is known."""
        sampled = (share for share in step.requests if share.samples_token)
        rows = {_place(share, 0): row for row, share in enumerate(sampled)}
        self._chosen.appendleft(_Chosen(tokens, rows))

    def _known(self, share: ScheduledRequest, sampling: SamplingInputs) -> SamplingInputs:
        pending = _pending(sampling.output_token_ids)
        if not pending:
            return sampling
        known = sampling.output_token_ids[: -len(pending)]
        chosen = (self._wait_for(_place(share, back)) for back in pending)
        return dataclasses.replace(sampling, output_token_ids=(*known, *chosen))

    def _wait_for(self, place: Place) -> int:
        chosen = self._that_chose(place)
        return chosen.on_host[chosen.rows[place]]

    def _that_chose(self, place: Place) -> _Chosen:
        for chosen in self._chosen:
            if place in chosen.rows:
                return chosen
        raise LookupError("the step that was to choose a pending token has failed")


class _Chosen:
    """What one step chooses."""

    def __init__(self, tokens: StepTokens, rows: Mapping[Place, int]) -> None:
        self.tokens = tokens
        self.rows = rows

    @functools.cached_property
    def on_host(self) -> list[int]:
        return self.tokens.wait_for_token_ids()


def _place(share: ScheduledRequest, back: int) -> Place:
    """Returns the place of a token that stands so far before the one that the share leads to."""
    return share.request_id, share.start_position + share.num_tokens - back


def _pending(token_ids: Sequence[int]) -> range:
    """Returns how far from the end the pending tokens stand: n, …, 1, as they are the last n."""
    ends = (back for back, token in enumerate(reversed(token_ids)) if token != PENDING_TOKEN_ID)
    return range(next(ends, len(token_ids)), 0, -1)
