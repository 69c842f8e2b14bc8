"""Short ways to build steps."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from furiosa_llm.sampling_params import SamplingParams
from furiosa_llm.scheduler_output import (
    NO_COUNTS,
    PromptScoring,
    SamplingInputs,
    ScheduledRequest,
    SchedulerOutput,
)

KINDS: list[dict[str, Any]] = [
    {"temperature": 0},
    {"temperature": 0.7},
    {"top_k": 5},
    {"top_p": 0.6, "min_p": 0.1},
    {"repetition_penalty": 1.3, "presence_penalty": 0.5, "frequency_penalty": 0.2},
    {"logit_bias": {3: 1.0}},
    {"logprobs": 2},
]
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


def make_sampling(**params: Any) -> SamplingInputs:
    """The third token of an answer."""
    return SamplingInputs(
        params=SamplingParams(**params),
        seed=1,
        position=2,
        suppressed_token_ids=(4,),
        prompt_token_ids=(5, 6),
        output_token_ids=(6, 7),
    )
