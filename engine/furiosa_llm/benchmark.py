"""Measures the engine: the same prompts several times over, and how much the runs differ."""

from __future__ import annotations

import dataclasses
import itertools
import random
import statistics
import time
from array import array
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime

from transformers import AutoConfig

from furiosa_llm.config import EngineArgs
from furiosa_llm.dataset.columns import ColumnMapping
from furiosa_llm.dataset.reader import open_input
from furiosa_llm.errors import ConfigError, RequestError
from furiosa_llm.llm_engine import LLMEngine
from furiosa_llm.outputs import RequestOutput
from furiosa_llm.prompt_feed import FailedRow, PromptFeed
from furiosa_llm.sampling_params import RequestOutputKind, SamplingParams

LATENCIES = ("queue_s", "ttft_s", "tpot_s", "e2e_s")

_WARMUP_PROMPTS = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class RandomWorkload:
    """Prompts of random tokens, other ones in each repetition, so that no cache knows them.

    Attributes:
        num_prompts: How many in a repetition.
        input_len: Shortest and longest prompt; lengths in between are equally likely.
        output_len: Shortest and longest answer, likewise.
    """

    num_prompts: int = 64
    input_len: tuple[int, int] = (128, 128)
    output_len: tuple[int, int] = (64, 64)


@dataclass(frozen=True, slots=True, kw_only=True)
class FileWorkload:
    """The rows of an input, the same in each repetition: the prefix cache may know them.

    Attributes:
        input: As `open_input` takes it.
        num_prompts: Rows to take from its start; None for all.
        columns: Which columns hold the prompt and the parameters.
    """

    input: str
    num_prompts: int | None = None
    columns: ColumnMapping = field(default_factory=ColumnMapping)


Workload = RandomWorkload | FileWorkload


@dataclass(frozen=True, slots=True)
class BenchmarkPrompt:
    """A prompt ready for the engine."""

    token_ids: Sequence[int]
    sampling_params: SamplingParams


@dataclass(frozen=True, slots=True, kw_only=True)
class BenchmarkSpec:
    """What to measure.

    Attributes:
        engine_args: How to load and run the model.
        sampling_params: For every prompt, as far as the workload does not decide.
        workload: The prompts.
        num_warmups: Runs over a few prompts that are not measured.
        num_repetitions: Runs that are.
    """

    engine_args: EngineArgs
    sampling_params: SamplingParams
    workload: Workload
    num_warmups: int = 1
    num_repetitions: int = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Repetition:
    """One run over the workload.

    Attributes:
        seconds: From the first request until the last answer.
        num_requests: Prompts answered.
        num_refused: Prompts that cannot be answered.
        num_prompt_tokens: Tokens of the prompts answered.
        num_cached_tokens: Those of them that the prefix cache spared.
        num_output_tokens: Tokens of the answers.
        num_preemptions: Times that a request gave its blocks back.
        peak_kv_cache_usage: Largest share of blocks held, from 0 to 1.
        latencies: Seconds of each request, by the name of the measure.
    """

    seconds: float
    num_requests: int
    num_refused: int
    num_prompt_tokens: int
    num_cached_tokens: int
    num_output_tokens: int
    num_preemptions: int
    peak_kv_cache_usage: float
    latencies: Mapping[str, Sequence[float]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Spread:
    """Mean and sample deviation over the repetitions; a single one has no deviation."""

    mean: float
    deviation: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Percentiles:
    """Half, nine tenths and 99 hundredths of the values are not above these."""

    p50: float
    p90: float
    p99: float


@dataclass(frozen=True, slots=True, kw_only=True)
class BenchmarkSummary:
    """The figures of all repetitions together.

    Attributes:
        rates: Requests and tokens per second, by name.
        latencies: Over every request of every repetition, by measure; None where none has it.
        cached_share: Share of the prompt tokens that the prefix cache spared.
        num_preemptions: In all repetitions.
        num_refused: Prompts that cannot be answered, in one repetition.
        peak_kv_cache_usage: Largest share of blocks held, from 0 to 1.
    """

    rates: Mapping[str, Spread]
    latencies: Mapping[str, Percentiles | None]
    cached_share: float
    num_preemptions: int
    num_refused: int
    peak_kv_cache_usage: float


@dataclass(frozen=True, slots=True, kw_only=True)
class BenchmarkResult:
    """What was measured.

    Attributes:
        spec: What was asked for.
        started_at: Date and time in UTC.
        startup_seconds: Until the model was ready; in no rate.
        num_blocks: Blocks of the KV cache.
        block_size: Tokens in one of them.
        num_unreadable: Rows of a file that are no prompts, left out.
        repetitions: Each run.
        summary: All of them together.
    """

    spec: BenchmarkSpec
    started_at: str
    startup_seconds: float
    num_blocks: int
    block_size: int
    num_unreadable: int
    repetitions: tuple[Repetition, ...]
    summary: BenchmarkSummary


def run_benchmark(
    spec: BenchmarkSpec, *, report: Callable[[str], None] = lambda _: None
) -> BenchmarkResult:
    """Loads the model, warms it up and measures it. Prompts are tokenized before the clock starts.

    Args:
        spec: What to measure.
        report: Called with a line of text when something begins or ends.

    Raises:
        ConfigError: The engine can answer none of the prompts, or options do not go together.
        DatasetError: The input cannot be read.
        ModelLoadError: The model cannot be loaded.
    """
    started_at = datetime.now(UTC).isoformat(timespec="seconds")
    report("loading the model")
    start = time.perf_counter()
    engine = LLMEngine.from_engine_args(spec.engine_args)
    startup_seconds = time.perf_counter() - start
    prompts = _PromptSource(spec, engine)
    for index in range(spec.num_warmups):
        report(f"warm-up {index + 1} of {spec.num_warmups}")
        measure(engine, prompts.take(-1 - index)[:_WARMUP_PROMPTS])
    repetitions = []
    for index in range(spec.num_repetitions):
        run = measure(engine, prompts.take(index))
        repetitions.append(run)
        report(
            f"repetition {index + 1} of {spec.num_repetitions}: {run.seconds:.2f} s, "
            f"{run.num_output_tokens / run.seconds:,.1f} tokens/s out"
        )
    return BenchmarkResult(
        spec=spec,
        started_at=started_at,
        startup_seconds=startup_seconds,
        num_blocks=engine.cache_config.num_blocks,
        block_size=engine.cache_config.block_size,
        num_unreadable=prompts.num_unreadable,
        repetitions=tuple(repetitions),
        summary=summarise(repetitions),
    )


def measure(engine: LLMEngine, prompts: Sequence[BenchmarkPrompt]) -> Repetition:
    """Answers all prompts and takes the time.

    Raises:
        ConfigError: The engine refuses every one of them.
    """
    start = time.perf_counter()
    refusals = _add_all(engine, prompts)
    peak_usage = 0.0
    outputs: list[RequestOutput] = []
    while engine.has_unfinished_requests():
        outputs += engine.step()
        if (step := engine.last_step) is not None:
            num_blocks = step.num_used_blocks + step.num_free_blocks
            peak_usage = max(peak_usage, step.num_used_blocks / num_blocks)
    seconds = time.perf_counter() - start
    if not outputs:
        raise ConfigError(
            "the engine can answer none of the workload's prompts: "
            + (refusals[0] if refusals else "there are none")
        )
    metrics = [output.metrics for output in outputs]
    return Repetition(
        seconds=seconds,
        num_requests=len(outputs),
        num_refused=len(refusals),
        num_prompt_tokens=sum(output.num_prompt_tokens for output in outputs),
        num_cached_tokens=sum(output.num_cached_tokens for output in outputs),
        num_output_tokens=sum(output.num_output_tokens for output in outputs),
        num_preemptions=sum(entry.num_preemptions for entry in metrics),
        peak_kv_cache_usage=peak_usage,
        latencies={
            name: tuple(value for entry in metrics if (value := getattr(entry, name)) is not None)
            for name in LATENCIES
        },
    )


def summarise(repetitions: Sequence[Repetition]) -> BenchmarkSummary:
    """Joins the figures of one or more repetitions."""
    num_prompt_tokens = sum(run.num_prompt_tokens for run in repetitions)
    num_cached_tokens = sum(run.num_cached_tokens for run in repetitions)
    return BenchmarkSummary(
        rates={
            "requests": _spread(run.num_requests / run.seconds for run in repetitions),
            "prompt_tokens": _spread(run.num_prompt_tokens / run.seconds for run in repetitions),
            "output_tokens": _spread(run.num_output_tokens / run.seconds for run in repetitions),
            "total_tokens": _spread(
                (run.num_prompt_tokens + run.num_output_tokens) / run.seconds for run in repetitions
            ),
        },
        latencies={
            name: _percentiles([value for run in repetitions for value in run.latencies[name]])
            for name in LATENCIES
        },
        cached_share=num_cached_tokens / num_prompt_tokens if num_prompt_tokens else 0.0,
        num_preemptions=sum(run.num_preemptions for run in repetitions),
        num_refused=max(run.num_refused for run in repetitions),
        peak_kv_cache_usage=max(run.peak_kv_cache_usage for run in repetitions),
    )


def percentile(values: Sequence[float], share: float) -> float:
    """Returns the value below which `share` of the sorted values lie, between two if need be.

    Args:
        values: In ascending order, at least one.
        share: From 0 to 1.
    """
    position = share * (len(values) - 1)
    below = int(position)
    above = min(below + 1, len(values) - 1)
    return values[below] + (position - below) * (values[above] - values[below])


class _PromptSource:
    """Makes the prompts of each repetition."""

    def __init__(self, spec: BenchmarkSpec, engine: LLMEngine) -> None:
        self.num_unreadable = 0
        self._params = dataclasses.replace(
            spec.sampling_params, output_kind=RequestOutputKind.FINAL
        )
        self._workload = spec.workload
        self._seed = spec.engine_args.seed
        self._vocab_size = 0
        self._rows: list[BenchmarkPrompt] = []
        match spec.workload:
            case RandomWorkload():
                self._vocab_size = _vocab_size(spec.engine_args)
            case FileWorkload():
                self._rows = self._read(spec.workload, engine)

    def take(self, repetition: int) -> list[BenchmarkPrompt]:
        """Returns the prompts of a repetition: of a file the same each time."""
        workload = self._workload
        if isinstance(workload, FileWorkload):
            return self._rows
        draws = random.Random(f"{self._seed} {repetition}")
        vocabulary = range(self._vocab_size)
        return [
            BenchmarkPrompt(
                array("i", draws.choices(vocabulary, k=draws.randint(*workload.input_len))),
                dataclasses.replace(
                    self._params, max_tokens=draws.randint(*workload.output_len), ignore_eos=True
                ),
            )
            for _ in range(workload.num_prompts)
        ]

    def _read(self, workload: FileWorkload, engine: LLMEngine) -> list[BenchmarkPrompt]:
        feed = PromptFeed(
            itertools.islice(open_input(workload.input).rows(), workload.num_prompts),
            tokenizer=engine.tokenizer,
            columns=workload.columns,
            defaults=self._params,
        )
        prompts = []
        with feed:
            while not feed.is_exhausted:
                for row in feed.take(wait=True):
                    if isinstance(row, FailedRow):
                        self.num_unreadable += 1
                    else:
                        prompts.append(BenchmarkPrompt(row.token_ids, row.record.sampling_params))
        return prompts


def _add_all(engine: LLMEngine, prompts: Sequence[BenchmarkPrompt]) -> list[str]:
    """Returns why prompts were refused, a line for each of them."""
    refusals = []
    for index, prompt in enumerate(prompts):
        try:
            engine.add_request(
                str(index), {"prompt_token_ids": prompt.token_ids}, prompt.sampling_params
            )
        except RequestError as error:
            refusals.append(str(error))
    return refusals


def _vocab_size(args: EngineArgs) -> int:
    config = AutoConfig.from_pretrained(args.model, trust_remote_code=args.trust_remote_code)
    return int(config.get_text_config().vocab_size)


def _spread(values: Iterable[float]) -> Spread:
    numbers = list(values)
    return Spread(
        mean=statistics.fmean(numbers),
        deviation=statistics.stdev(numbers) if len(numbers) > 1 else None,
    )


def _percentiles(values: Sequence[float]) -> Percentiles | None:
    if not values:
        return None
    ordered = sorted(values)
    p50, p90, p99 = (percentile(ordered, share) for share in (0.5, 0.9, 0.99))
    return Percentiles(p50=p50, p90=p90, p99=p99)
