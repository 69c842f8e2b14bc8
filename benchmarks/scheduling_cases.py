"""Each part of offline scheduling, with it and without it, on rows where it matters."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from benchmarks import scheduling_workloads as workloads
from benchmarks.scheduling_runs import (
    BLOCK_SIZE,
    Figures,
    Setup,
    SimulatedRunner,
    low_water,
    run,
    simulate_replicas,
)
from benchmarks.scheduling_workloads import Row
from furiosa_llm.replicas.dispatcher import Dispatcher, most_work
from furiosa_llm.request import Request, TokenizedPrompt
from furiosa_llm.scheduling.answer_lengths import AnswerLengths
from furiosa_llm.scheduling.ordering import FifoQueue, OfflineQueue, WaitingQueue
from furiosa_llm.scheduling.waiting_room import Strategy

PREFIXES, LONGEST, FORECAST = "prefix groups", "longest first", "block forecast"
SMALL_BESIDE_LARGE, BALANCE, STARTS = "small beside large", "balance by work", "starts in groups"
TOKENS, STEPS, SECONDS = "computed tokens", "steps", "seconds, simulated"
WITH_PROMPTS = "steps that read a prompt"
PREEMPTIONS, RECOMPUTED = "preemptions", "recomputed tokens"

_VALUES: dict[str, Callable[[Figures], float]] = {
    TOKENS: lambda figures: figures.num_tokens,
    STEPS: lambda figures: figures.num_steps,
    WITH_PROMPTS: lambda figures: figures.num_steps_with_prompts,
    SECONDS: lambda figures: figures.seconds,
    PREEMPTIONS: lambda figures: figures.num_preemptions,
    RECOMPUTED: lambda figures: figures.num_recomputed_tokens,
}
_NUM_DRAWS = 10


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """One line of the table."""

    part: str
    rows: str
    measure: str
    off: float
    on: float

    @property
    def ratio(self) -> float | None:
        """What is left of it with the part; None if there was nothing."""
        return self.on / self.off if self.off else None


class WithoutGroups(OfflineQueue[Request]):
    """No request comes ahead of its turn because its prefix is in the cache."""

    def similar(self, token_ids: Sequence[int], num_tokens: int) -> None:  # noqa: ARG002
        """Returns nothing."""
        return


class PromptsWithoutGroups(OfflineQueue[TokenizedPrompt]):
    """The same for prompts on their way to replicas."""

    def similar(self, token_ids: Sequence[int], num_tokens: int) -> None:  # noqa: ARG002
        """Returns nothing."""
        return


class WithoutSmallOnes(OfflineQueue[Request]):
    """No request comes ahead of its turn because the first does not fit."""

    def largest(self, fits: Callable[[Request], bool]) -> None:  # noqa: ARG002
        """Returns nothing."""
        return


def whole() -> Strategy:
    """Returns offline scheduling with all its parts, but for what only GPUs need."""
    return Strategy.of(is_offline=True)


def whole_on_gpu() -> Strategy:
    """Returns it with all its parts."""
    return Strategy.of(is_offline=True, favours_decodes=True)


def without(part: str) -> Strategy:
    """Returns offline scheduling without one of its parts."""
    if part == STARTS:
        return whole()
    if part == FORECAST:
        return Strategy(waiting=OfflineQueue(), lengths=None)
    queues: dict[str, Callable[[], WaitingQueue[Request]]] = {
        PREFIXES: WithoutGroups,
        LONGEST: FifoQueue,
        SMALL_BESIDE_LARGE: WithoutSmallOnes,
    }
    return Strategy(waiting=queues[part](), lengths=AnswerLengths())


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """Rows that one engine answers, and what is told of it."""

    part: str
    name: str
    rows: Callable[[], list[Row]]
    setup: Setup
    setup_without: Setup | None = None  # the same if None
    measures: tuple[str, ...]

    def results(self) -> Iterator[Result]:
        """Runs both ways by the account of a model."""
        rows = self.rows()
        off = run(rows, self.setup_without or self.setup, without(self.part), SimulatedRunner())
        strategy = whole_on_gpu() if self.part == STARTS else whole()
        on = run(rows, self.setup, strategy, SimulatedRunner())
        yield from compared(self.part, self.name, self.measures, off, on)


_FORECAST_MEASURES = (PREEMPTIONS, RECOMPUTED, STEPS, SECONDS)
CASES = [
    Case(
        part=PREFIXES,
        name="64 in 4 groups, 2,000 blocks",
        rows=lambda: workloads.grouped(4, 16),
        setup=Setup(num_blocks=2000),
        measures=(TOKENS,),
    ),
    Case(
        part=PREFIXES,
        name="64 in 4 groups, 64 blocks",
        rows=lambda: workloads.grouped(4, 16),
        setup=Setup(num_blocks=64),
        measures=(TOKENS, SECONDS),
    ),
    Case(
        part=PREFIXES,
        name="4,000 in 200 groups, 200 blocks",
        rows=lambda: workloads.grouped(200, 20),
        setup=Setup(num_blocks=200),
        measures=(TOKENS, STEPS, SECONDS),
    ),
    Case(
        part=PREFIXES,
        name="500 in 50 groups that share 64 tokens, 200 blocks",
        rows=lambda: workloads.grouped(50, 10, num_common_tokens=64, num_shared_tokens=448),
        setup=Setup(num_blocks=200),
        measures=(TOKENS, SECONDS),
    ),
    Case(
        part=LONGEST,
        name="128, one in 16 with 512 tokens to answer, the others with 64",
        rows=lambda: workloads.few_long(128),
        setup=Setup(num_blocks=4000, max_num_seqs=32),
        measures=(STEPS, SECONDS),
    ),
    Case(
        part=LONGEST,
        name="512, answers of 16 to 512 tokens",
        rows=lambda: workloads.mixed(512, prompt_len=(32, 256), max_tokens=(16, 512)),
        setup=Setup(num_blocks=4000),
        measures=(STEPS, SECONDS),
    ),
    Case(
        part=LONGEST,
        name="512, answers end at 10 to 50 % of 16 to 512 tokens",
        rows=lambda: workloads.mixed(
            512, prompt_len=(32, 256), max_tokens=(16, 512), ends_at=(0.1, 0.5)
        ),
        setup=Setup(num_blocks=4000),
        measures=(STEPS, SECONDS),
    ),
    Case(
        part=FORECAST,
        name="400, answers of 32 to 512 tokens, 200 blocks",
        rows=lambda: workloads.mixed(400, prompt_len=(32, 256), max_tokens=(32, 512)),
        setup=Setup(num_blocks=200),
        measures=_FORECAST_MEASURES,
    ),
    Case(
        part=FORECAST,
        name="400, answers end at 10 to 50 % of 32 to 512 tokens, 200 blocks",
        rows=lambda: workloads.mixed(
            400, prompt_len=(32, 256), max_tokens=(32, 512), ends_at=(0.1, 0.5)
        ),
        setup=Setup(num_blocks=200),
        measures=_FORECAST_MEASURES,
    ),
    Case(
        part=FORECAST,
        name="400, short prompts, every answer of 256 tokens, 200 blocks",
        rows=lambda: workloads.mixed(400, prompt_len=(32, 64), max_tokens=(256, 256)),
        setup=Setup(num_blocks=200),
        measures=_FORECAST_MEASURES,
    ),
    Case(
        part=FORECAST,
        name="400, answers of 32 to 512 tokens, 200 blocks; without: a tenth kept free",
        rows=lambda: workloads.mixed(400, prompt_len=(32, 256), max_tokens=(32, 512)),
        setup=Setup(num_blocks=200),
        setup_without=Setup(num_blocks=200, spare_blocks_ratio=0.1),
        measures=_FORECAST_MEASURES,
    ),
    Case(
        part=SMALL_BESIDE_LARGE,
        name="400, answers of 64 to 1,024 tokens, 400 blocks",
        rows=lambda: workloads.mixed(400, prompt_len=(16, 128), max_tokens=(64, 1024)),
        setup=Setup(num_blocks=400),
        measures=(STEPS, SECONDS),
    ),
    Case(
        part=STARTS,
        name="1,024, prompts of 128 to 512 and answers of 64 to 256 tokens, 256 at once",
        rows=lambda: workloads.mixed(1024, prompt_len=(128, 512), max_tokens=(64, 256)),
        setup=Setup(num_blocks=8000, max_num_seqs=256, max_num_batched_tokens=8192),
        measures=(WITH_PROMPTS, STEPS),
    ),
    Case(
        part=STARTS,
        name="the same, 2,500 blocks",
        rows=lambda: workloads.mixed(1024, prompt_len=(128, 512), max_tokens=(64, 256)),
        setup=Setup(num_blocks=2500, max_num_seqs=256, max_num_batched_tokens=8192),
        measures=(WITH_PROMPTS, STEPS),
    ),
    Case(
        part=SMALL_BESIDE_LARGE,
        name="400, one in 8 with a prompt of 1,600 tokens, 400 blocks",
        rows=lambda: workloads.large_and_small(400),
        setup=Setup(num_blocks=400),
        measures=(STEPS, SECONDS),
    ),
]


def replica_results() -> Iterator[Result]:
    """Runs several replicas by the account of a model."""
    yield from _grouped_replicas()
    for num_rows, num_replicas in ((24, 2), (48, 4), (100, 4)):
        name = f"{num_rows} documents, {num_replicas} replicas"
        in_turn = _mean_seconds(num_rows, num_replicas, FifoQueue, by_count, is_pulled=False)
        by_number = _mean_seconds(num_rows, num_replicas, OfflineQueue, by_count)
        by_work = _mean_seconds(num_rows, num_replicas, OfflineQueue, most_work)
        for other, off in (("dealt out in turn", in_turn), ("by count", by_number)):
            yield Result(
                part=BALANCE, rows=f"{name}; without: {other}", measure=SECONDS, off=off, on=by_work
            )


def by_count(prompt: TokenizedPrompt) -> int:  # noqa: ARG001
    """Weighs all prompts alike."""
    return 1


def compared(
    part: str, name: str, measures: Sequence[str], off: Figures, on: Figures
) -> Iterator[Result]:
    """Yields the lines of one comparison."""
    for measure in measures:
        value = _VALUES[measure]
        yield Result(part=part, rows=name, measure=measure, off=value(off), on=value(on))


def _grouped_replicas() -> Iterator[Result]:
    rows, setup = workloads.grouped(40, 20), Setup(num_blocks=200)
    figures = []
    for queue, make_strategy in (
        (PromptsWithoutGroups(), lambda: without(PREFIXES)),
        (OfflineQueue[TokenizedPrompt](), whole),
    ):
        dispatcher = Dispatcher(
            2, low_water_tokens=low_water(setup), queue=queue, prefix_block_size=BLOCK_SIZE
        )
        figures.append(simulate_replicas(rows, setup, dispatcher, 2, make_strategy))
    name = "800 in 40 groups, 2 replicas of 200 blocks"
    yield from compared(PREFIXES, name, (TOKENS, SECONDS), *figures)


def _mean_seconds(
    num_rows: int,
    num_replicas: int,
    queue: Callable[[], WaitingQueue[TokenizedPrompt]],
    weigh: Callable[[TokenizedPrompt], int],
    *,
    is_pulled: bool = True,
) -> float:
    """Returns the seconds that replicas take, the mean of several draws."""
    setup = Setup(num_blocks=6000)
    seconds = []
    for seed in range(_NUM_DRAWS):
        dispatcher = Dispatcher(
            num_replicas,
            low_water_tokens=low_water(setup) if is_pulled else 2**31,
            queue=queue(),
            weigh=weigh,
        )
        rows = workloads.documents(num_rows, seed=seed)
        seconds.append(simulate_replicas(rows, setup, dispatcher, num_replicas, whole).seconds)
    return statistics.fmean(seconds)
