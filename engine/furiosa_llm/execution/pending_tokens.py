"""Fills in tokens that were still being chosen when a step was scheduled."""

from __future__ import annotations

import dataclasses
from collections import deque
from collections.abc import Mapping

from furiosa_llm.request import PENDING_TOKEN_ID
from furiosa_llm.scheduler_output import ScheduledRequest, SchedulerOutput

Place = tuple[int, int]  # request id, position in prompt plus answer


class PendingTokens:
    """The tokens that the last steps chose, by request and position."""

    def __init__(self, num_steps: int) -> None:
        """Keeps the tokens of the last `num_steps` steps: as many as may be in flight."""
        self._chosen: deque[dict[Place, int]] = deque(maxlen=num_steps)

    def fill_in(self, step: SchedulerOutput) -> SchedulerOutput:
        """Returns the step with every token known; the steps before it have run."""
        if not any(_has_pending(share) for share in step.requests):
            return step
        requests = tuple(
            self._filled(share) if _has_pending(share) else share for share in step.requests
        )
        return dataclasses.replace(step, requests=requests)

    def remember(self, step: SchedulerOutput, token_ids: Mapping[int, int]) -> None:
        """Keeps what a step chose, for steps that were scheduled before that was known."""
        self._chosen.appendleft(
            {
                (share.request_id, share.start_position + share.num_tokens): token
                for share in step.requests
                if (token := token_ids.get(share.request_id)) is not None
            }
        )

    def _filled(self, share: ScheduledRequest) -> ScheduledRequest:
        stop = share.start_position + share.num_tokens
        sampling = share.sampling
        if sampling is not None:
            output_token_ids = self._known(share.request_id, sampling.output_token_ids, stop)
            sampling = dataclasses.replace(sampling, output_token_ids=output_token_ids)
        token_ids = self._known(share.request_id, share.token_ids, stop)
        return dataclasses.replace(share, token_ids=token_ids, sampling=sampling)

    def _known(self, request_id: int, token_ids: tuple[int, ...], stop: int) -> tuple[int, ...]:
        """Returns the tokens at positions [stop - len(token_ids), stop), all known."""
        start = stop - len(token_ids)
        return tuple(
            self._look_up((request_id, start + index)) if token == PENDING_TOKEN_ID else token
            for index, token in enumerate(token_ids)
        )

    def _look_up(self, place: Place) -> int:
        return next(chosen[place] for chosen in self._chosen if place in chosen)


def _has_pending(share: ScheduledRequest) -> bool:
    return share.token_ids[-1] == PENDING_TOKEN_ID  # they are the last ones
