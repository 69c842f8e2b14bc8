"""A step while it is being filled."""

from __future__ import annotations

from collections.abc import Iterable

from furiosa_llm.request import Request
from furiosa_llm.scheduler_output import PromptScoring, SamplingInputs, ScheduledRequest


class StepDraft:
    """The shares and counts of a step, as the scheduler adds requests to it."""

    def __init__(self, *, token_budget: int, max_num_requests: int, now: float) -> None:
        self.token_budget = token_budget
        self.max_num_requests = max_num_requests
        self.now = now
        self.shares: list[ScheduledRequest] = []
        self.num_prefill_tokens = 0
        self.num_decode_tokens = 0
        self.num_recomputed_tokens = 0
        self.num_cached_tokens = 0
        self.num_preemptions = 0

    @property
    def has_room(self) -> bool:
        """Whether another request can have a share."""
        return self.token_budget > 0 and len(self.shares) < self.max_num_requests

    def add(self, request: Request, num_tokens: int, eos_token_ids: Iterable[int]) -> None:
        """Gives a request its share, the next `num_tokens` tokens, and books it as computed."""
        start = request.num_computed_tokens
        stop = start + num_tokens
        samples_token = stop == request.num_tokens
        scores_prompt = request.sampling_params.prompt_logprobs is not None
        self.shares.append(
            ScheduledRequest(
                request_id=request.request_id,
                token_ids=request.token_ids(start, stop),
                start_position=start,
                block_ids=request.block_ids,
                sampling=_sampling_inputs(request, eos_token_ids) if samples_token else None,
                scoring=_prompt_scoring(request, start, stop) if scores_prompt else None,
                num_covered_tokens=request.costs.num_covered_tokens,
            )
        )
        request.num_computed_tokens = stop
        request.num_pending_tokens += samples_token
        self.token_budget -= num_tokens
        self._account(request, start, stop)

    def account_cached(self, request: Request, num_cached_tokens: int) -> None:
        """Books the tokens that the prefix cache spares a request that starts."""
        costs = request.costs
        num_spared_tokens = max(num_cached_tokens - costs.num_covered_tokens, 0)
        costs.num_covered_tokens += num_spared_tokens
        costs.num_cached_tokens += num_spared_tokens
        self.num_cached_tokens += num_spared_tokens

    def _account(self, request: Request, start: int, stop: int) -> None:
        costs = request.costs
        if start == costs.num_covered_tokens and start >= request.num_prompt_tokens:  # most often
            self.num_decode_tokens += stop - start
            costs.num_covered_tokens = stop
            return
        fresh = min(max(costs.num_covered_tokens, start), stop)
        num_prefill_tokens = max(min(stop, request.num_prompt_tokens) - fresh, 0)
        self.num_prefill_tokens += num_prefill_tokens
        self.num_decode_tokens += stop - fresh - num_prefill_tokens
        self.num_recomputed_tokens += fresh - start
        costs.num_recomputed_tokens += fresh - start
        costs.num_covered_tokens = max(costs.num_covered_tokens, stop)


def _sampling_inputs(request: Request, eos_token_ids: Iterable[int]) -> SamplingInputs:
    params = request.sampling_params
    position = request.num_output_tokens + request.num_pending_tokens
    suppressed: tuple[int, ...] = ()
    if position < params.min_tokens:
        suppressed = (*eos_token_ids, *params.stop_token_ids)
    if not params.needs_answer:
        return SamplingInputs(params, request.sampling_seed, position, suppressed)
    return SamplingInputs(
        params=params,
        seed=request.sampling_seed,
        position=position,
        suppressed_token_ids=suppressed,
        prompt_token_ids=tuple(request.prompt_token_ids) if params.has_penalties else (),
        output_token_ids=request.token_ids(request.num_prompt_tokens, request.num_tokens),
    )


def _prompt_scoring(request: Request, start: int, stop: int) -> PromptScoring | None:
    """What to score of the prompt in tokens [start, stop): what no earlier step has scored."""
    num_top = request.sampling_params.prompt_logprobs
    if num_top is None or not request.wants_prompt_logprobs:
        return None
    first = max(start, request.costs.num_covered_tokens)
    last = min(stop, request.num_prompt_tokens - 1)  # the last token has none of the prompt after
    if first >= last:
        return None
    return PromptScoring(
        offset=first - start, token_ids=request.token_ids(first + 1, last + 1), num_top=num_top
    )
