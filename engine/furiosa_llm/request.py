"""One answer in the making, and the account of what it has cost."""

from __future__ import annotations

import enum
from collections.abc import Sequence
from dataclasses import dataclass, field

from furiosa_llm.errors import RequestError
from furiosa_llm.sampling_params import SamplingParams

PENDING_TOKEN_ID = -1  # stands for a token that a step in flight is choosing


class RequestStatus(enum.Enum):
    """Where a request stands."""

    WAITING = enum.auto()  # holds no blocks
    RUNNING = enum.auto()
    FINISHED = enum.auto()


class FinishReason(enum.StrEnum):
    """Why an answer ended."""

    STOP = "stop"  # end of sequence, a stop token or a stop string
    LENGTH = "length"  # max_tokens
    ERROR = "error"  # it cannot be answered, or not to the end
    CANCELLED = "cancelled"


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenizedPrompt:
    """A prompt that has been checked, on its way to an engine core.

    Attributes:
        request_id: The caller's name for it; behind a pool of replicas, one of the pool's own.
        text: The prompt as it was given, or None where token ids were given.
        prompt_token_ids: At least one, all in the vocabulary.
        sampling_params: How to answer.
        max_tokens: Most tokens of an answer, decided.
        arrival_time: By the engine's clock.
        timeout_seconds: Longest time from its first step to its end, if there is a limit.
        callers_name: The caller's name for it, where `request_id` is another.
    """

    request_id: str
    text: str | None
    prompt_token_ids: Sequence[int]
    sampling_params: SamplingParams
    max_tokens: int
    arrival_time: float
    timeout_seconds: float | None = None
    callers_name: str | None = None

    @property
    def seed_name(self) -> str:
        """The name on which its random draws depend: the caller's."""
        return self.request_id if self.callers_name is None else self.callers_name

    @property
    def num_prompt_tokens(self) -> int:
        """Length of the prompt."""
        return len(self.prompt_token_ids)


@dataclass(slots=True, eq=False, kw_only=True)
class RequestAccount:
    """What a request has cost since it first started. Times are those of the engine's clock."""

    start_time: float  # of its first step
    first_token_time: float | None = None
    finish_time: float | None = None
    num_cached_tokens: int = 0  # prompt tokens that the prefix cache spared
    num_covered_tokens: int = 0  # leading tokens computed or taken from the cache at least once
    num_preemptions: int = 0
    num_recomputed_tokens: int = 0
    num_shared_blocks: int = 0  # leading ones of its blocks, found in the prefix cache
    peak_blocks: int = 0  # most that it and the other answers to its prompt held at once
    block_seconds: float = 0.0
    blocks_held_since: float = 0.0  # when the number of blocks held last changed


@dataclass(slots=True, eq=False, kw_only=True)
class Request:
    """One prompt, one answer so far, and its place in the KV cache.

    Only the scheduler changes a request after it is built.
    """

    request_id: int
    prompt_token_ids: Sequence[int]
    sampling_params: SamplingParams
    max_tokens: int  # decided: the parameter, or the rest of the context
    group_id: str = ""  # the prompt that it answers, by the name that the caller gave
    index: int = 0  # which of the prompt's n answers it is
    sampling_seed: int = 0  # 64 bits; the stream that its random draws come from
    arrival_time: float = 0.0
    timeout_seconds: float | None = None  # from its first step to its end

    output_token_ids: list[int] = field(default_factory=list)
    status: RequestStatus = RequestStatus.WAITING
    finish_reason: FinishReason | None = None
    stop_reason: str | int | None = None
    error: RequestError | None = None  # why it failed
    is_isolated: bool = False  # takes no block that another request has computed

    # Leading tokens whose keys and values are in the cache once the steps in flight are done.
    num_computed_tokens: int = 0
    num_pending_tokens: int = 0  # of the answer, being chosen by steps in flight
    block_ids: tuple[int, ...] = ()  # the i-th holds tokens [i*bs, (i+1)*bs)
    block_hashes: tuple[bytes, ...] = ()  # of its leading full blocks
    num_findable_blocks: int = 0  # leading ones of its blocks that the prefix cache knows

    account: RequestAccount | None = None  # None until it first starts: many wait for long

    @property
    def num_prompt_tokens(self) -> int:
        """Length of the prompt."""
        return len(self.prompt_token_ids)

    @property
    def num_output_tokens(self) -> int:
        """Length of the answer so far."""
        return len(self.output_token_ids)

    @property
    def num_known_tokens(self) -> int:
        """Prompt and answer so far."""
        return len(self.prompt_token_ids) + len(self.output_token_ids)

    @property
    def num_tokens(self) -> int:
        """Prompt, answer so far, and the tokens of it that are being chosen."""
        return len(self.prompt_token_ids) + len(self.output_token_ids) + self.num_pending_tokens

    @property
    def num_uncomputed_tokens(self) -> int:
        """Tokens that a forward pass still has to see: many in prefill, one in decode."""
        return self.num_tokens - self.num_computed_tokens

    @property
    def costs(self) -> RequestAccount:
        """Its account; it has started."""
        assert self.account is not None, f"request {self.request_id} has not started"
        return self.account

    @property
    def wants_prompt_logprobs(self) -> bool:
        """Whether it is the one of the prompt's answers that tells about the prompt's tokens."""
        return self.index == 0 and self.sampling_params.prompt_logprobs is not None

    @property
    def needs_prompt_logits(self) -> bool:
        """Whether prompt tokens are left to score, so that no cached block can stand for them."""
        if not self.wants_prompt_logprobs:
            return False
        num_covered_tokens = 0 if self.account is None else self.account.num_covered_tokens
        return num_covered_tokens < self.num_prompt_tokens - 1

    @property
    def is_finished(self) -> bool:
        """Whether the answer is complete or given up."""
        return self.status is RequestStatus.FINISHED

    def token_ids(self, start: int, stop: int) -> tuple[int, ...]:
        """Returns the tokens at positions [start, stop), pending ones as `PENDING_TOKEN_ID`."""
        first, last = start - len(self.prompt_token_ids), stop - len(self.prompt_token_ids)
        known = tuple(self.output_token_ids[max(first, 0) : max(last, 0)])
        if first < 0:
            known = (*self.prompt_token_ids[start:stop], *known)
        return known + (PENDING_TOKEN_ID,) * (stop - start - len(known))
