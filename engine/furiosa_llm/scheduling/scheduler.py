"""Chooses the tokens of each step. It never sees a tensor."""

from __future__ import annotations

from collections.abc import Callable

from furiosa_llm.engine_limits import CacheConfig, ModelInfo
from furiosa_llm.errors import NonFiniteLogitsError, RequestError, StructureFailedError
from furiosa_llm.request import FinishReason, Request, RequestStatus
from furiosa_llm.scheduler_config import SchedulerConfig
from furiosa_llm.scheduler_output import (
    ScheduledRequest,
    SchedulerOutput,
    StepCounts,
    StepResult,
)
from furiosa_llm.scheduling.admission import check_fits
from furiosa_llm.scheduling.deadlines import Deadlines
from furiosa_llm.scheduling.kv_cache_manager import KVCacheManager
from furiosa_llm.scheduling.step_draft import StepDraft
from furiosa_llm.scheduling.stop_conditions import ending_of
from furiosa_llm.scheduling.waiting_room import Strategy, WaitingRoom


class Scheduler:
    """Continuous batching with chunked prefill and preemption by recomputation.

    There is no prefill phase and no decode phase. Each request has tokens, the leading
    `num_computed_tokens` of them are in the KV cache, and each step lets requests catch up
    within a budget of tokens (iteration-level scheduling, Orca 2022; chunked prefill,
    Sarathi-Serve 2024). When blocks run out, the request that started last gives its blocks
    back and starts again later; its answer stays the same.

    Steps may be scheduled while earlier ones are in flight. On a single stage a request then goes
    on with a token that is still being chosen. In a pipeline it has to wait for that token, so
    the requests are divided among as many steps as there are stages.
    """

    def __init__(
        self,
        config: SchedulerConfig,
        cache_config: CacheConfig,
        model_info: ModelInfo,
        *,
        num_stages: int = 1,
        strategy: Strategy | None = None,
        clock: Callable[[], float],
    ) -> None:
        """Starts with nothing to do.

        Args:
            config: The limits of each step.
            cache_config: The blocks.
            model_info: What ends a request.
            num_stages: Pipeline stages that steps go through.
            strategy: How requests start; the one that the configuration asks for if None.
            clock: In seconds.
        """
        self._config = config
        self._cache_config = cache_config
        self._model_info = model_info
        self._num_stages = num_stages
        self._kv_cache = KVCacheManager(cache_config)
        self._clock = clock
        self._requests: dict[int, Request] = {}  # every unfinished one
        self._running: list[Request] = []  # in the order in which they started
        strategy = strategy or Strategy.of(is_offline=config.is_offline)
        self._waiting = WaitingRoom(strategy, self._kv_cache)
        self._gate = strategy.gate
        self._chunk_size = config.prefill_chunk_size or config.max_num_batched_tokens
        self._num_spare_blocks = int(config.spare_blocks_ratio * cache_config.num_blocks)
        self._deadlines = Deadlines()
        self._num_steps_in_flight = 0
        self._num_preemptions = 0  # since the last step that computed something

    @property
    def has_unfinished(self) -> bool:
        """Whether there is anything left to compute."""
        return bool(self._requests)

    @property
    def num_running(self) -> int:
        """Requests that hold blocks."""
        return len(self._running)

    @property
    def num_waiting(self) -> int:
        """Requests that wait for blocks."""
        return len(self._requests) - len(self._running)

    @property
    def num_waiting_prompt_tokens(self) -> int:
        """Prompt tokens of the requests that wait for blocks."""
        return sum(
            request.num_prompt_tokens
            for request in self._requests.values()
            if request.status is RequestStatus.WAITING
        )

    @property
    def kv_cache_usage(self) -> float:
        """Share of the blocks that requests hold, from 0 to 1."""
        return self._kv_cache.pool.num_used_blocks / self._cache_config.num_blocks

    def add(self, request: Request) -> None:
        """Takes a request in.

        Raises:
            PromptTooLongError: Prompt and answer exceed the context.
            NeverFitsError: They exceed the whole KV cache.
        """
        check_fits(
            num_prompt_tokens=request.num_prompt_tokens,
            max_tokens=request.max_tokens,
            max_model_len=self._model_info.max_model_len,
            cache_config=self._cache_config,
        )
        self._requests[request.request_id] = request
        self._waiting.add(request)

    def schedule(self) -> SchedulerOutput:
        """Chooses the tokens of the next forward pass, running requests first.

        Returns:
            The step. It is empty, and not to be run, when every request waits for a step in
            flight.
        """
        step = StepDraft(
            token_budget=self._config.max_num_batched_tokens,
            max_num_requests=self._max_num_requests(),
            now=self._clock(),
        )
        self._continue_running(step)
        # After a preemption a new request would take the blocks that were just given back.
        if not step.num_preemptions and self._gate.is_open(num_running=len(self._running)):
            self._start_waiting(step)
        self._num_preemptions += step.num_preemptions
        if step.shares:
            self._num_steps_in_flight += 1
        else:
            assert self._num_steps_in_flight or not self.has_unfinished, "no request can go on"
        output = SchedulerOutput(requests=tuple(step.shares), counts=self._counts(step))
        if step.shares:
            self._num_preemptions = 0
        return output

    def update(self, step: SchedulerOutput, result: StepResult) -> list[Request]:
        """Books what a forward pass computed. One with failures has to be screened before.

        Returns:
            The requests that have a new token or have failed, finished ones among them.
        """
        now = self._clock()
        self._num_steps_in_flight -= 1
        changed = []
        for share in step.requests:
            request = self._requests.get(share.request_id)
            if request is None:
                continue  # it finished while the step ran: by the token before, or from outside
            failure = result.failures.get(share.request_id)
            if failure is not None:
                self._kv_cache.forget(share.block_ids)
                self.finish(request, FinishReason.ERROR, error=failure)
                changed.append(request)
            elif share.request_id in result.token_ids:
                request.num_pending_tokens -= 1
                self._append(request, result.token_ids[share.request_id], now)
                changed.append(request)
        return changed

    def without_harmless(self, step: SchedulerOutput, result: StepResult) -> StepResult:
        """Leaves out failures of answers that have ended, where nobody reads what they spoil.

        A step ahead goes on after the end of an answer: its grammar has nothing more to say there.
        """
        harmless = set()
        for share in step.requests:
            failure = result.failures.get(share.request_id)
            if failure is None or share.request_id in self._requests:
                continue
            if isinstance(failure, StructureFailedError) or share.is_ahead:
                harmless.add(share.request_id)
            if isinstance(failure, NonFiniteLogitsError):
                self._kv_cache.forget(share.block_ids)
        return result.without(harmless) if harmless else result

    def screen(self, step: SchedulerOutput, result: StepResult) -> StepResult:
        """Takes back the shares that others may have spoiled. Returns the result without them.

        These are requests that read what a failing one of the same step wrote, and those whose
        scores are not finite while others computed the start of their prompt: what is wrong may
        have come from there, and they start again without it.
        """
        block_size = self._cache_config.block_size
        spoiled = {
            block_id
            for share in step.requests
            if share.request_id in result.failures
            for block_id in share.block_ids[share.start_position // block_size :]
        }
        taken_back = set()
        for share in step.requests:
            request = self._requests.get(share.request_id)
            if request is None:
                continue
            failure = result.failures.get(share.request_id)
            if isinstance(failure, NonFiniteLogitsError) and request.costs.num_shared_blocks:
                request.is_isolated = True
            elif failure is not None or spoiled.isdisjoint(share.block_ids):
                continue
            self._take_back(share)
            taken_back.add(share.request_id)
        return result.without(taken_back)

    def drop(self, step: SchedulerOutput) -> None:
        """Books that a step was not run, or not to any use: its tokens are computed again."""
        self._num_steps_in_flight -= 1
        for share in step.requests:
            self._take_back(share)

    def take_overdue(self) -> list[Request]:
        """Returns the unfinished requests that have taken longer than they may, each once."""
        return self._deadlines.take_overdue(now=self._clock())

    def finish(
        self,
        request: Request,
        reason: FinishReason,
        stop_reason: str | int | None = None,
        *,
        error: RequestError | None = None,
    ) -> None:
        """Ends a request early: a stop string was found, it failed, or is no longer wanted.

        One that its last token has ended already only gets the reason: a stop string goes before
        the length that it reached at the same time.
        """
        request.error = error
        if request.is_finished:
            request.finish_reason, request.stop_reason = reason, stop_reason
        else:
            self._finish(request, reason, stop_reason, self._clock())

    def check_integrity(self) -> None:
        """Asserts that every block has exactly the holders that the requests know of."""
        held = [block for request in self._requests.values() for block in request.block_ids]
        self._kv_cache.pool.check_integrity(held)

    def _continue_running(self, step: StepDraft) -> None:
        index = 0
        while index < len(self._running) and step.has_room:
            request = self._running[index]
            index += 1
            # One token is kept back for each request that comes after this one.
            budget = max(step.token_budget - (len(self._running) - index), 1)
            num_tokens = min(self._num_ready_tokens(request), budget)
            if num_tokens == 0:
                continue
            while not self._kv_cache.try_grow(request, num_tokens, now=step.now):
                self._preempt(self._running[-1], step)
                if request.status is RequestStatus.WAITING:
                    return  # it was the last one itself
            step.add(request, num_tokens, self._model_info.eos_token_ids)

    def _start_waiting(self, step: StepDraft) -> None:
        can_start = True
        while can_start and step.has_room:
            can_start = self._start_next(step)
        is_full = len(self._running) == self._config.max_num_seqs
        if (is_full or not can_start) and self.num_waiting:
            self._gate.close(num_running=len(self._running))

    def _start_next(self, step: StepDraft) -> bool:
        """Lets a waiting request start; False where none can."""
        if len(self._running) == self._config.max_num_seqs:
            return False
        candidate = self._waiting.choose(self._running)
        if candidate is None or not self._num_ready_tokens(candidate.request):
            return False
        request, prefix = candidate.request, candidate.prefix
        num_cached_tokens = len(prefix) * self._cache_config.block_size
        num_tokens = min(
            request.num_tokens - num_cached_tokens, step.token_budget, self._chunk_size
        )
        is_new = request.account is None
        fits = self._kv_cache.try_start(
            request,
            prefix,
            num_tokens,
            num_spare_blocks=self._num_spare_blocks if self._running else 0,
            now=step.now,
        )
        if not fits:
            return False
        self._waiting.remove(request)
        if is_new:
            self._deadlines.add(request, now=step.now)
        request.status = RequestStatus.RUNNING
        self._running.append(request)
        step.account_cached(request, num_cached_tokens)
        step.add(request, num_tokens, self._model_info.eos_token_ids)
        return True

    def _num_ready_tokens(self, request: Request) -> int:
        """Returns how many tokens a request can have computed now; 0 while it has to wait."""
        if request.num_pending_tokens:
            num_output_tokens = request.num_output_tokens + request.num_pending_tokens
            if self._num_stages > 1 or num_output_tokens >= request.max_tokens:
                return 0
        return min(request.num_uncomputed_tokens, self._chunk_size)

    def _max_num_requests(self) -> int:
        """Requests in one step: a share of all of them where stages work on different ones."""
        num_requests = min(len(self._requests), self._config.max_num_seqs)
        return -(-num_requests // min(self._num_stages, self._config.npu_queue_limit))

    def _preempt(self, request: Request, step: StepDraft) -> None:
        self._put_back(request, step.now)
        step.num_preemptions += 1

    def _put_back(self, request: Request, now: float) -> None:
        self._kv_cache.free(request, now=now)
        self._running.remove(request)
        request.status = RequestStatus.WAITING
        request.costs.num_preemptions += 1
        self._waiting.put_back(request)

    def _take_back(self, share: ScheduledRequest) -> None:
        """Lets a request start again, without what it or others have computed of its share."""
        self._kv_cache.forget(share.block_ids)
        request = self._requests.get(share.request_id)
        if request is None:
            return
        costs = request.costs
        costs.num_covered_tokens = min(costs.num_covered_tokens, share.num_covered_tokens)
        request.num_pending_tokens = 0
        if request.status is RequestStatus.RUNNING:
            self._put_back(request, self._clock())
            self._num_preemptions += 1

    def _append(self, request: Request, token_id: int, now: float) -> None:
        request.output_token_ids.append(token_id)
        if request.costs.first_token_time is None:
            request.costs.first_token_time = now
        ending = ending_of(request, self._model_info.eos_token_ids)
        if ending is not None:
            self._finish(request, ending.reason, ending.stop_reason, now)

    def _finish(
        self, request: Request, reason: FinishReason, stop_reason: str | int | None, now: float
    ) -> None:
        if request.status is RequestStatus.RUNNING:
            self._kv_cache.free(request, now=now)
            self._running.remove(request)
            is_whole = reason in (FinishReason.STOP, FinishReason.LENGTH)
            self._waiting.note_end(request, is_whole=is_whole)
            self._gate.note_end()
        del self._requests[request.request_id]
        request.status = RequestStatus.FINISHED
        request.finish_reason = reason
        request.stop_reason = stop_reason
        if request.account is not None:
            request.account.finish_time = now
        request.block_hashes = ()

    def _counts(self, step: StepDraft) -> StepCounts:
        return StepCounts(
            num_running=self.num_running,
            num_waiting=self.num_waiting,
            num_prefill_tokens=step.num_prefill_tokens,
            num_decode_tokens=step.num_decode_tokens,
            num_recomputed_tokens=step.num_recomputed_tokens,
            num_cached_tokens=step.num_cached_tokens,
            num_preemptions=self._num_preemptions,
            num_steps_in_flight=self._num_steps_in_flight,
            num_used_blocks=self._kv_cache.pool.num_used_blocks,
            num_free_blocks=self._kv_cache.pool.num_free_blocks,
        )
