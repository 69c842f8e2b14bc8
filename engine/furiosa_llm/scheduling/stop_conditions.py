"""Whether a new token ends an answer."""

from __future__ import annotations

from collections.abc import Set
from typing import NamedTuple

from furiosa_llm.request import FinishReason, Request


class Ending(NamedTuple):
    """Why an answer ends, and the token that ends it where it is one of the user's own."""

    reason: FinishReason
    stop_reason: int | None = None


def ending_of(request: Request, eos_token_ids: Set[int]) -> Ending | None:
    """Returns how the last token of an answer ends it; None if it goes on.

    Stop strings are not looked for here: they are found in text, when this one is booked.
    """
    params = request.sampling_params
    token_id = request.output_token_ids[-1]
    if request.num_output_tokens >= params.min_tokens:
        if token_id in eos_token_ids and not params.ignore_eos:
            return Ending(FinishReason.STOP)
        if token_id in params.stop_token_ids:
            return Ending(FinishReason.STOP, token_id)
    if request.num_output_tokens >= request.max_tokens:
        return Ending(FinishReason.LENGTH)
    return None
