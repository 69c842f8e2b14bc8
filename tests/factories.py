"""Short ways to build what a test is about."""

from __future__ import annotations

from collections.abc import Sequence

from furiosa_llm.engine_limits import CacheConfig, ModelInfo
from furiosa_llm.llm_engine import LLMEngine
from furiosa_llm.outputs import RequestOutput
from furiosa_llm.prompt_intake import Prompt
from furiosa_llm.request import Request
from furiosa_llm.sampling_params import SamplingParams
from furiosa_llm.scheduler_config import SchedulerConfig
from furiosa_llm.scheduler_output import SchedulerOutput, StepResult
from furiosa_llm.scheduling.scheduler import Scheduler
from furiosa_llm.scheduling.waiting_room import Strategy


class FakeClock:
    """A clock that only moves when told to."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def make_request(
    request_id: int = 0,
    *,
    num_prompt_tokens: int = 4,
    max_tokens: int = 4,
    prompt: Sequence[int] | None = None,
    params: SamplingParams | None = None,
    timeout_seconds: float | None = None,
) -> Request:
    return Request(
        request_id=request_id,
        prompt_token_ids=list(range(100, 100 + num_prompt_tokens)) if prompt is None else prompt,
        sampling_params=params or SamplingParams(max_tokens=max_tokens, temperature=0),
        max_tokens=max_tokens,
        timeout_seconds=timeout_seconds,
    )


def make_scheduler(
    *,
    num_blocks: int = 64,
    block_size: int = 16,
    max_num_seqs: int = 8,
    token_budget: int = 64,
    max_model_len: int = 4096,
    enable_prefix_caching: bool = False,
    spare_blocks_ratio: float = 0.0,
    is_offline: bool = False,
    eos_token_ids: frozenset[int] = frozenset(),
    prefill_chunk_size: int | None = None,
    num_stages: int = 1,
    num_steps_in_flight: int = 2,
    strategy: Strategy | None = None,
    clock: FakeClock | None = None,
) -> Scheduler:
    return Scheduler(
        SchedulerConfig(
            max_num_seqs=max_num_seqs,
            max_num_batched_tokens=token_budget,
            spare_blocks_ratio=spare_blocks_ratio,
            is_offline=is_offline,
            prefill_chunk_size=prefill_chunk_size,
            npu_queue_limit=num_steps_in_flight,
        ),
        CacheConfig(
            num_blocks=num_blocks,
            block_size=block_size,
            enable_prefix_caching=enable_prefix_caching,
        ),
        ModelInfo(max_model_len=max_model_len, vocab_size=1000, eos_token_ids=eos_token_ids),
        num_stages=num_stages,
        strategy=strategy,
        clock=clock or FakeClock(),
    )


def sample_all(step: SchedulerOutput, token_id: int = 7) -> StepResult:
    """What a model would bring that always says the same token."""
    return StepResult(
        token_ids={share.request_id: token_id for share in step.requests if share.samples_token}
    )


def run_step(scheduler: Scheduler) -> SchedulerOutput:
    """Schedules a step and books it."""
    step = scheduler.schedule()
    scheduler.update(step, sample_all(step))
    return step


def answer_all(
    engine: LLMEngine,
    prompts: Sequence[Prompt | Sequence[int]],
    params: SamplingParams | Sequence[SamplingParams],
) -> list[RequestOutput]:
    """Answers prompts, texts or token ids, and returns the last output of each, in order."""
    for index, prompt in enumerate(prompts):
        as_prompt = prompt if isinstance(prompt, str) else {"prompt_token_ids": prompt}
        own = params if isinstance(params, SamplingParams) else params[index]
        engine.add_request(str(index), as_prompt, own)
    last: dict[int, RequestOutput] = {}
    while engine.has_unfinished_requests():
        last.update((int(output.request_id), output) for output in engine.step())
    return [last[index] for index in range(len(prompts))]
