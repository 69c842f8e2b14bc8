"""Fills in tokens that were still being chosen when a step was scheduled."""

from __future__ import annotations

import functools
from collections import defaultdict, deque
from collections.abc import Mapping, Sequence
from typing import Protocol

import numpy as np
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
        moves: defaultdict[_Chosen, list[int]] = defaultdict(list)  # row, token, row, token, …
        end = 0
        for share in step.requests:
            num_tokens = len(share.token_ids)
            end += num_tokens
            for back, token_id in enumerate(reversed(share.token_ids), 1):
                if token_id != PENDING_TOKEN_ID:
                    break
                place = share.request_id, share.start_position + num_tokens - back
                chosen, row = self._find(place)
                moves[chosen] += (row, end - back)
        for chosen, numbers in moves.items():
            pairs = torch.from_numpy(np.array(numbers).reshape(-1, 2).T.copy())
            rows, indices = to_device(pairs, input_ids.device)
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
        sampled = [share for share in step.requests if share.sampling is not None]
        rows = {
            (share.request_id, share.start_position + len(share.token_ids)): row
            for row, share in enumerate(sampled)
        }
        self._chosen.appendleft(_Chosen(tokens, rows))

    def _known(self, share: ScheduledRequest, sampling: SamplingInputs) -> SamplingInputs:
        if not sampling.output_token_ids or sampling.output_token_ids[-1] != PENDING_TOKEN_ID:
            return sampling
        pending = _pending(sampling.output_token_ids)
        known = sampling.output_token_ids[: -len(pending)]
        chosen = (self._wait_for(_place(share, back)) for back in pending)
        return sampling._replace(output_token_ids=(*known, *chosen))

    def _wait_for(self, place: Place) -> int:
        chosen, row = self._find(place)
        return chosen.on_host[row]

    def _find(self, place: Place) -> tuple[_Chosen, int]:
        """Returns the step that chooses a token, and the row of it."""
        for chosen in self._chosen:
            row = chosen.rows.get(place)
            if row is not None:
                return chosen, row
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
    return share.request_id, share.start_position + len(share.token_ids) - back


def _pending(token_ids: Sequence[int]) -> range:
    """Returns how far from the end the pending tokens stand: n, …, 1, as they are the last n."""
    ends = (back for back, token in enumerate(reversed(token_ids)) if token != PENDING_TOKEN_ID)
    return range(next(ends, len(token_ids)), 0, -1)
