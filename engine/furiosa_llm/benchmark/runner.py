"""Runs a benchmark."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from furiosa_llm.artifact.defaults import resolve_engine_args
from furiosa_llm.benchmark.figures import LATENCIES, BenchmarkSummary, Repetition, summarise
from furiosa_llm.benchmark.workload import BenchmarkPrompt, PromptSource, Workload, expected_prompts
from furiosa_llm.config import EngineArgs
from furiosa_llm.errors import ConfigError, RequestError
from furiosa_llm.llm_engine import LLMEngine
from furiosa_llm.outputs import RequestOutput
from furiosa_llm.sampling_params import SamplingParams

_WARMUP_PROMPTS = 8


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
class BenchmarkResult:
    """What was measured.

    Attributes:
        spec: What was asked for, with the engine's options as they were decided.
        started_at: Date and time in UTC.
        startup_seconds: Until the model was ready, without what loading libraries took; in no
            rate.
        import_seconds: What loading libraries took; in no rate.
        placement: How many replicas ran, and on what.
        num_blocks: Blocks of each replica's KV cache.
        block_size: Tokens in one of them.
        num_unreadable: Rows of a file that are no prompts, left out.
        repetitions: Each run.
        summary: All of them together.
    """

    spec: BenchmarkSpec
    started_at: str
    startup_seconds: float
    placement: str
    num_blocks: int
    block_size: int
    num_unreadable: int
    repetitions: tuple[Repetition, ...]
    summary: BenchmarkSummary
    import_seconds: float = 0.0


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
    args = resolve_engine_args(spec.engine_args)
    engine = LLMEngine.from_engine_args(args, num_prompts=expected_prompts(spec.workload))
    startup_seconds = time.perf_counter() - start - engine.import_seconds
    report(f"running {engine.placement}")
    try:
        prompts = PromptSource(
            spec.workload, engine, params=spec.sampling_params, seed=spec.engine_args.seed
        )
        repetitions = _repeat(spec, engine, prompts, report)
    finally:
        engine.shutdown()
    decided = dataclasses.asdict(engine.limits.scheduler_config)
    return BenchmarkResult(
        spec=dataclasses.replace(spec, engine_args=dataclasses.replace(args, **decided)),
        started_at=started_at,
        startup_seconds=startup_seconds,
        placement=str(engine.placement),
        num_blocks=engine.limits.cache_config.num_blocks,
        block_size=engine.limits.cache_config.block_size,
        num_unreadable=prompts.num_unreadable,
        repetitions=tuple(repetitions),
        summary=summarise(repetitions),
        import_seconds=engine.import_seconds,
    )


def _repeat(
    spec: BenchmarkSpec,
    engine: LLMEngine,
    prompts: PromptSource,
    report: Callable[[str], None],
) -> list[Repetition]:
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
    return repetitions


def measure(engine: LLMEngine, prompts: Sequence[BenchmarkPrompt]) -> Repetition:
    """Answers all prompts and takes the time.

    Raises:
        ConfigError: The engine refuses every one of them, or every answer fails.
    """
    start = time.perf_counter()
    refusals = _add_all(engine, prompts)
    peak_usage = 0.0
    ended: list[RequestOutput] = []
    while engine.has_unfinished_requests():
        ended += engine.step()
        peak_usage = max([peak_usage, *(step.kv_cache_usage for step in engine.last_steps)])
    seconds = time.perf_counter() - start
    outputs = [output for output in ended if output.error is None]
    errors = [str(output.error) for output in ended if output.error is not None]
    if not outputs:
        raise ConfigError(
            "the engine can answer none of the workload's prompts: "
            + next(iter([*errors, *refusals]), "there are none")
        )
    metrics = [output.metrics for output in outputs]
    return Repetition(
        seconds=seconds,
        num_requests=len(outputs),
        num_refused=len(refusals),
        num_failed=len(errors),
        first_error=next(iter(errors), None),
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
