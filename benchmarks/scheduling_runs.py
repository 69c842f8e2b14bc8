"""Runs rows through the scheduler, on a model or on the account of one."""

from __future__ import annotations

import heapq
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from benchmarks.scheduling_workloads import VOCAB_SIZE, Row
from furiosa_llm.engine_limits import CacheConfig, ModelInfo
from furiosa_llm.execution.step_queue import FinishedStep, StepRunner
from furiosa_llm.replicas.dispatcher import Dispatcher, low_water_tokens
from furiosa_llm.request import FinishReason, Request, TokenizedPrompt
from furiosa_llm.sampling_params import SamplingParams
from furiosa_llm.scheduler_config import SchedulerConfig
from furiosa_llm.scheduler_output import SchedulerOutput, StepResult
from furiosa_llm.scheduling.scheduler import Scheduler
from furiosa_llm.scheduling.waiting_room import Strategy

BLOCK_SIZE = 32
STEP_SECONDS = 0.020
TOKEN_SECONDS = 0.0016
ATTENTION_SECONDS = 0.8e-6  # for each token that a token looks back on
_PARAMS = SamplingParams(temperature=0, max_tokens=1, ignore_eos=True)


@dataclass(frozen=True, slots=True, kw_only=True)
class Setup:
    """The room that rows are run in."""

    num_blocks: int
    max_num_seqs: int = 64
    max_num_batched_tokens: int = 1024
    spare_blocks_ratio: float = 0.0

    def make_scheduler(self, strategy: Strategy) -> Scheduler:
        """Builds a scheduler of one step in flight."""
        return Scheduler(
            SchedulerConfig(
                npu_queue_limit=1,
                is_offline=True,
                max_num_seqs=self.max_num_seqs,
                max_num_batched_tokens=self.max_num_batched_tokens,
                spare_blocks_ratio=self.spare_blocks_ratio,
            ),
            CacheConfig(num_blocks=self.num_blocks, block_size=BLOCK_SIZE),
            ModelInfo(max_model_len=2**20, vocab_size=VOCAB_SIZE, eos_token_ids=frozenset()),
            strategy=strategy,
            clock=time.monotonic,
        )


@dataclass(slots=True, kw_only=True)
class Figures:
    """What a run took, in counts that are the same everywhere, and in seconds."""

    num_steps: int = 0
    num_steps_with_prompts: int = 0
    num_tokens: int = 0
    num_preemptions: int = 0
    num_recomputed_tokens: int = 0
    seconds: float = 0.0


class SimulatedRunner:
    """Takes as long as a model of 135 million parameters does on two cores, without computing.

    Its answers do not matter: each is as long as its row says.
    """

    def launch(self, step: SchedulerOutput) -> FinishedStep:
        """Returns at once, with the seconds that the step would take."""
        num_attended_tokens = sum(
            share.num_tokens * (share.start_position + share.num_tokens // 2)
            for share in step.requests
        )
        return FinishedStep(
            StepResult(
                token_ids={share.request_id: 3 for share in step.requests if share.samples_token},
                model_seconds=STEP_SECONDS
                + TOKEN_SECONDS * step.num_tokens
                + ATTENTION_SECONDS * num_attended_tokens,
            )
        )


class Run:
    """Rows in a scheduler, and what they have taken so far."""

    def __init__(self, scheduler: Scheduler, runner: StepRunner) -> None:
        self.scheduler = scheduler
        self.figures = Figures()
        self._runner = runner
        self._rows: list[Row] = []

    def add(self, row: Row) -> int:
        """Takes a row in and returns its number."""
        self.scheduler.add(
            Request(
                request_id=len(self._rows),
                prompt_token_ids=row.prompt_token_ids,
                sampling_params=_PARAMS,
                max_tokens=row.max_tokens,
            )
        )
        self._rows.append(row)
        return len(self._rows) - 1

    def start_step(self) -> tuple[SchedulerOutput, StepResult]:
        """Runs a step that is booked later."""
        step = self.scheduler.schedule()
        result = self._runner.launch(step).result()
        figures, counts = self.figures, step.counts
        figures.num_steps += 1
        figures.num_steps_with_prompts += counts.num_prefill_tokens > 0
        figures.num_tokens += step.num_tokens
        figures.num_preemptions += counts.num_preemptions
        figures.num_recomputed_tokens += counts.num_recomputed_tokens
        figures.seconds += result.model_seconds
        return step, result

    def end_step(self, step: SchedulerOutput, result: StepResult) -> list[int]:
        """Books a step and returns the rows that are answered."""
        ended = []
        for request in self.scheduler.update(step, result):
            row = self._rows[request.request_id]
            if request.num_output_tokens >= row.num_output_tokens:
                self.scheduler.finish(request, FinishReason.STOP)
            if request.is_finished:
                ended.append(request.request_id)
        return ended


def run(rows: Sequence[Row], setup: Setup, strategy: Strategy, runner: StepRunner) -> Figures:
    """Answers the rows with one engine."""
    one = Run(setup.make_scheduler(strategy), runner)
    for row in rows:
        one.add(row)
    while one.scheduler.has_unfinished:
        one.end_step(*one.start_step())
    return one.figures


def simulate_replicas(
    rows: Sequence[Row],
    setup: Setup,
    dispatcher: Dispatcher,
    num_replicas: int,
    make_strategy: Callable[[], Strategy],
) -> Figures:
    """Answers the rows with replicas that a dispatcher supplies. Seconds are those of the last."""
    runs = [
        Run(setup.make_scheduler(make_strategy()), SimulatedRunner()) for _ in range(num_replicas)
    ]
    names: list[dict[int, str]] = [{} for _ in runs]  # of the rows that each replica was given
    busy: list[tuple[float, int, tuple[SchedulerOutput, StepResult]]] = []  # by when it ends
    idle = set(range(num_replicas))
    for index, row in enumerate(rows):
        dispatcher.add(make_prompt(str(index), row))
    now = 0.0
    while True:
        for replica, prompt in dispatcher.assignments():
            row = rows[int(prompt.request_id)]
            names[replica][runs[replica].add(row)] = prompt.request_id
        for replica in sorted(idle):
            if runs[replica].scheduler.has_unfinished:
                started = runs[replica].start_step()
                heapq.heappush(busy, (now + started[1].model_seconds, replica, started))
                idle.remove(replica)
        if not busy:
            return _joined([one.figures for one in runs], now)
        now, replica, started = heapq.heappop(busy)
        idle.add(replica)
        for number in runs[replica].end_step(*started):
            dispatcher.finished(replica, names[replica][number])
        dispatcher.reported(
            replica,
            num_received=len(names[replica]),
            num_waiting_tokens=runs[replica].scheduler.num_waiting_prompt_tokens,
        )


def make_prompt(name: str, row: Row) -> TokenizedPrompt:
    """Returns a row as it is handed to replicas."""
    return TokenizedPrompt(
        request_id=name,
        text=None,
        prompt_token_ids=row.prompt_token_ids,
        sampling_params=_PARAMS,
        max_tokens=row.max_tokens,
        arrival_time=0.0,
    )


def low_water(setup: Setup) -> int:
    """Returns the prompt tokens that a replica should have waiting."""
    return low_water_tokens(setup.max_num_batched_tokens)


def _joined(parts: Sequence[Figures], seconds: float) -> Figures:
    return Figures(
        num_steps=max(one.num_steps for one in parts),
        num_steps_with_prompts=max(one.num_steps_with_prompts for one in parts),
        num_tokens=sum(one.num_tokens for one in parts),
        num_preemptions=sum(one.num_preemptions for one in parts),
        num_recomputed_tokens=sum(one.num_recomputed_tokens for one in parts),
        seconds=seconds,
    )
