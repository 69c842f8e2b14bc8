"""Short ways to build steps."""

from __future__ import annotations

from collections.abc import Sequence

from furiosa_llm.sampling_params import SamplingParams
from furiosa_llm.scheduler_output import (
    NO_COUNTS,
    PromptScoring,
    SamplingInputs,
    ScheduledRequest,
    SchedulerOutput,
)

GREEDY = SamplingInputs(params=SamplingParams(temperature=0), seed=0, position=0)


def make_share(
    request_id: int,
    token_ids: Sequence[int],
    *,
    start: int = 0,
    block_ids: Sequence[int],
    sampling: SamplingInputs | None = GREEDY,
    scoring: PromptScoring | None = None,
) -> ScheduledRequest:
    return ScheduledRequest(
        request_id=request_id,
        token_ids=tuple(token_ids),
        start_position=start,
        block_ids=tuple(block_ids),
        sampling=sampling,
        scoring=scoring,
    )


def make_step(*shares: ScheduledRequest) -> SchedulerOutput:
    return SchedulerOutput(requests=shares, counts=NO_COUNTS)
