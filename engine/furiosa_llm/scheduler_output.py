"""What passes from the scheduler to the model runner, and back."""

from __future__ import annotations

from collections.abc import Container, Mapping
from dataclasses import dataclass, field, replace
from typing import NamedTuple, TypeVar

from furiosa_llm.errors import RequestError
from furiosa_llm.request import PENDING_TOKEN_ID
from furiosa_llm.sampling_params import SamplingParams

_T = TypeVar("_T")


class SamplingInputs(NamedTuple):
    """What choosing one request's next token takes, beside its logits.

    A tuple, as `ScheduledRequest` is: each step makes hundreds, in a third of a dataclass's time.

    Attributes:
        params: The request's sampling parameters.
        seed: 64-bit stream of its random draws.
        position: Tokens of the answer so far: the place in that stream.
        suppressed_token_ids: Tokens that may not be chosen yet (`min_tokens`).
        prompt_token_ids: The prompt, where penalties need it, else empty.
        output_token_ids: The answer so far, where penalties or its form need it, else empty; the
            last ones may be pending likewise.
    """

    params: SamplingParams
    seed: int
    position: int
    suppressed_token_ids: tuple[int, ...] = ()
    prompt_token_ids: tuple[int, ...] = ()
    output_token_ids: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class PromptScoring:
    """The prompt tokens that one request's share of a step tells the log probabilities of.

    Attributes:
        offset: Place in the share of the first token whose logits are needed.
        token_ids: The tokens that follow it and each next one: what the logits are looked up for.
        num_top: How many of the likeliest tokens to tell in each place.
    """

    offset: int
    token_ids: tuple[int, ...]
    num_top: int


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenLogprobs:
    """How likely the model found a token, and which it found likeliest in its place.

    Attributes:
        token_id: The token.
        logprob: Natural logarithm of its probability.
        rank: 1 for the likeliest.
        top_token_ids: The likeliest tokens, in order.
        top_logprobs: Their log probabilities.
    """

    token_id: int
    logprob: float
    rank: int
    top_token_ids: tuple[int, ...] = ()
    top_logprobs: tuple[float, ...] = ()


class ScheduledRequest(NamedTuple):
    """One request's share of a step.

    Attributes:
        request_id: The engine's number of the request.
        token_ids: The tokens to compute; the last ones may be `PENDING_TOKEN_ID`, chosen by a
            step that is still in flight.
        start_position: Position of `token_ids[0]` in prompt plus answer.
        block_ids: Every block of the request, those of the tokens to compute among them.
        sampling: How to choose the next token; None for all but the last chunk of a prefill.
        scoring: The prompt tokens to score; None unless `prompt_logprobs` asks for them.
        num_covered_tokens: Leading tokens of the request that earlier steps have computed, also
            where it gave their blocks back and computes them again.
    """

    request_id: int
    token_ids: tuple[int, ...]
    start_position: int
    block_ids: tuple[int, ...]
    sampling: SamplingInputs | None
    scoring: PromptScoring | None = None
    num_covered_tokens: int = 0

    @property
    def num_tokens(self) -> int:
        """Tokens to compute."""
        return len(self.token_ids)

    @property
    def is_ahead(self) -> bool:
        """Whether no token of it is known yet, so that no other request can use its blocks."""
        return all(token_id == PENDING_TOKEN_ID for token_id in self.token_ids)

    @property
    def samples_token(self) -> bool:
        """Whether the step chooses a new token for this request."""
        return self.sampling is not None


@dataclass(frozen=True, slots=True, kw_only=True)
class StepCounts:
    """How a step was filled; see `StepStats` for what each count means."""

    num_running: int
    num_waiting: int
    num_prefill_tokens: int
    num_decode_tokens: int
    num_recomputed_tokens: int
    num_cached_tokens: int
    num_preemptions: int
    num_used_blocks: int
    num_free_blocks: int
    num_steps_in_flight: int


NO_COUNTS = StepCounts(  # of a step that no scheduler made
    num_running=0,
    num_waiting=0,
    num_prefill_tokens=0,
    num_decode_tokens=0,
    num_recomputed_tokens=0,
    num_cached_tokens=0,
    num_preemptions=0,
    num_used_blocks=0,
    num_free_blocks=0,
    num_steps_in_flight=1,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class SchedulerOutput:
    """One step: the input of exactly one forward pass.

    A request may read blocks that another request of the same step fills: every layer stores the
    keys and values of the whole step before it attends to any. Steps run in the order in which
    they were scheduled, so that a later one may read what an earlier one writes.
    """

    requests: tuple[ScheduledRequest, ...]
    counts: StepCounts

    @property
    def num_tokens(self) -> int:
        """Tokens in the step."""
        return sum(request.num_tokens for request in self.requests)


@dataclass(frozen=True, slots=True, kw_only=True)
class StepResult:
    """What a forward pass brought.

    Attributes:
        token_ids: The new token of each request that sampled one.
        model_seconds: Duration of the forward pass.
        sample_seconds: Duration of choosing the tokens.
        logprobs: Log probabilities of the new tokens, where they are asked for.
        prompt_logprobs: Those of the prompt tokens that the step scored, in order.
        failures: Requests that cannot go on, and why. They get no token.
    """

    token_ids: dict[int, int]
    model_seconds: float = 0.0
    sample_seconds: float = 0.0
    logprobs: Mapping[int, TokenLogprobs] = field(default_factory=dict)
    prompt_logprobs: Mapping[int, tuple[TokenLogprobs, ...]] = field(default_factory=dict)
    failures: Mapping[int, RequestError] = field(default_factory=dict)

    def without(self, request_ids: Container[int]) -> StepResult:
        """Returns the result as if the step had not held these requests."""

        def others(found: Mapping[int, _T]) -> dict[int, _T]:
            return {name: each for name, each in found.items() if name not in request_ids}

        return replace(
            self,
            token_ids=others(self.token_ids),
            logprobs=others(self.logprobs),
            prompt_logprobs=others(self.prompt_logprobs),
            failures=others(self.failures),
        )
