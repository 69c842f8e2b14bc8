"""What the engine hands back: answers, their cost, and the account of each step."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

from furiosa_llm.errors import RequestError


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestMetrics:
    """What one answered prompt cost.

    All its answers are taken together, also those that `best_of` draws and does not return.

    Attributes:
        queue_s: Seconds from arrival to the first step that computed one of its tokens.
        ttft_s: Seconds from arrival to the first token of the answer.
        tpot_s: Seconds for each further token; None when there was only one.
        e2e_s: Seconds from arrival to the end of the answer.
        peak_blocks: KV-cache blocks held at most.
        block_seconds: Integral over time of the blocks held; a shared block counts for each holder.
        num_preemptions: Times that it gave its blocks back to let others go on.
        num_recomputed_tokens: Tokens computed again after that.
    """

    queue_s: float | None = None
    ttft_s: float | None = None
    tpot_s: float | None = None
    e2e_s: float | None = None
    peak_blocks: int = 0
    block_seconds: float = 0.0
    num_preemptions: int = 0
    num_recomputed_tokens: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Logprob:
    """How likely the model found a token in its place.

    Attributes:
        logprob: Natural logarithm of its probability, as the model gives it: before penalties,
            biases, temperature and filters.
        rank: 1 for the likeliest token of the vocabulary, 2 for the next.
        decoded_token: Its text by itself; of a token that is part of a character, a placeholder.
    """

    logprob: float
    rank: int
    decoded_token: str


# By token id: first the token that stands there, then the likeliest others.
PositionLogprobs: TypeAlias = dict[int, Logprob]


@dataclass(frozen=True, slots=True, kw_only=True)
class CompletionOutput:
    """One answer to a prompt.

    Attributes:
        index: Which of the n answers it is, from 0; its rank where `best_of` ranks them.
        text: The answer, or what is new of it (`RequestOutputKind.DELTA`).
        token_ids: Its tokens; a stop token that ended it is the last of them.
        finish_reason: `stop`, `length`, `error`, `cancelled`, or None while it grows.
        stop_reason: The stop string or stop token that ended it; None for the model's own end.
        cumulative_logprob: Sum of the log probabilities of all its tokens so far; None unless
            `logprobs` or `best_of` asks for it.
        logprobs: For each of its tokens (or the new ones), what `logprobs` asks for.
    """

    index: int
    text: str
    token_ids: list[int]
    finish_reason: str | None = None
    stop_reason: str | int | None = None
    cumulative_logprob: float | None = None
    logprobs: list[PositionLogprobs] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestOutput:
    """The state of one prompt and its answers.

    Attributes:
        request_id: As given to `add_request`.
        prompt: The text, or None if token ids were given.
        prompt_token_ids: The prompt as the model saw it.
        prompt_logprobs: For each token of the prompt what `prompt_logprobs` asks for; None for the
            first, which has nothing before it.
        outputs: Its n answers, by index.
        finished: Whether every answer is complete.
        num_cached_tokens: Prompt tokens that the prefix cache spared the first answer.
        num_output_tokens: Tokens of all answers together, also of those that `best_of` draws and
            does not return.
        metrics: Its cost so far.
        replica: The data-parallel replica that ran it.
        error: Why an answer failed. `outputs` has what there is of it; where replicas died of the
            prompt, it is empty.
    """

    request_id: str
    prompt: str | None
    prompt_token_ids: list[int]
    outputs: list[CompletionOutput]
    finished: bool
    num_cached_tokens: int
    num_output_tokens: int
    metrics: RequestMetrics
    replica: int = 0
    error: RequestError | None = None
    prompt_logprobs: list[PositionLogprobs | None] | None = None

    @property
    def num_prompt_tokens(self) -> int:
        """Length of the prompt."""
        return len(self.prompt_token_ids)


@dataclass(frozen=True, slots=True, kw_only=True)
class StepStats:
    """The account of one engine step.

    Over a run in which every request finishes, the sums hold: prefill and cached tokens are the
    rows' prompt tokens (n times over where n answers are drawn), sampled tokens their output
    tokens, recomputed tokens their recomputed tokens.

    Attributes:
        replica: The data-parallel replica that ran the step.
        step: Its number in the replica, from 0; from 0 again if the replica was started again.
        time_s: Seconds from the engine's start to the end of the step.
        num_running: Requests that hold blocks.
        num_waiting: Requests that do not.
        num_prefill_tokens: Prompt tokens computed for the first time.
        num_decode_tokens: Answer tokens computed for the first time.
        num_recomputed_tokens: Tokens computed again after a preemption.
        num_cached_tokens: Prompt tokens taken from the prefix cache by requests that started.
        num_sampled_tokens: New tokens of answers; not those that were computed ahead for an answer
            that had ended meanwhile.
        num_preemptions: Requests that gave their blocks back.
        num_used_blocks: Blocks held by requests.
        num_free_blocks: The others, those that only the prefix cache keeps among them.
        num_steps_in_flight: Steps that were scheduled and not done when this one was, with it.
        schedule_ms: Milliseconds to choose and book the step.
        model_ms: Milliseconds of the forward pass, in all stages of a pipeline together, without
            the time that they wait for each other; on GPUs, with what the last one waits.
        sample_ms: Milliseconds to choose the tokens.
    """

    replica: int
    step: int
    time_s: float
    num_running: int
    num_waiting: int
    num_prefill_tokens: int
    num_decode_tokens: int
    num_recomputed_tokens: int
    num_cached_tokens: int
    num_sampled_tokens: int
    num_preemptions: int
    num_used_blocks: int
    num_free_blocks: int
    num_steps_in_flight: int
    schedule_ms: float
    model_ms: float
    sample_ms: float

    @property
    def kv_cache_usage(self) -> float:
        """Share of the blocks that requests hold, from 0 to 1."""
        return self.num_used_blocks / (self.num_used_blocks + self.num_free_blocks)
