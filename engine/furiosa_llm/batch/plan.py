"""Looks at a batch before it runs: whether its rows can be answered, and what they will take."""

from __future__ import annotations

import itertools
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from furiosa_llm.batch.default_params import check_params
from furiosa_llm.batch.row_census import PlanSpec, Report, RowCensus
from furiosa_llm.batch.summary import FirstError
from furiosa_llm.dataset.reader import open_input
from furiosa_llm.dataset.row_estimate import estimate_num_rows
from furiosa_llm.dataset.target import check_output
from furiosa_llm.engine_limits import EngineLimits
from furiosa_llm.llm_engine import LLMEngine
from furiosa_llm.request import TokenizedPrompt


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """What answering some rows took.

    Attributes:
        num_rows: How many.
        num_failed: Those among them that failed nevertheless.
        num_output_tokens: Tokens of their answers.
        seconds: Until the last of them was answered.
    """

    num_rows: int
    num_failed: int
    num_output_tokens: int
    seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchPlan:
    """What is known of a batch before it runs.

    Attributes:
        num_rows: Rows of the input.
        error_counts: Those that cannot be answered, by `error_code`.
        first_errors: The first of each code.
        prompt_lengths: How many of the others have a prompt of so many tokens.
        num_shared_tokens: Prompt tokens, in whole blocks, that an earlier row begins with, too.
        max_output_tokens: Tokens that all answers have at most.
        max_blocks: KV-cache blocks that the longest prompt takes with its answer, at most.
        limits: Of each replica.
        placement: How many replicas there are, and on what.
        num_replicas: How many.
        startup_seconds: What loading the model took.
        import_seconds: What loading libraries took.
        sample: What answering some rows took; None if none was.
    """

    num_rows: int
    error_counts: Mapping[str, int]
    first_errors: Mapping[str, FirstError]
    prompt_lengths: Mapping[int, int]
    num_shared_tokens: int
    max_output_tokens: int
    max_blocks: int
    limits: EngineLimits
    placement: str
    num_replicas: int
    startup_seconds: float
    import_seconds: float
    sample: Sample | None

    @property
    def num_failed(self) -> int:
        """Rows that cannot be answered."""
        return sum(self.error_counts.values())

    @property
    def num_ready(self) -> int:
        """Rows that can."""
        return self.num_rows - self.num_failed

    @property
    def num_prompt_tokens(self) -> int:
        """Tokens of their prompts."""
        return sum(length * number for length, number in self.prompt_lengths.items())

    @property
    def num_at_once(self) -> int:
        """Rows of mean size that all replicas together can run at the same time."""
        if not self.num_ready:
            return 0
        cache = self.limits.cache_config
        num_tokens = (self.num_prompt_tokens + self.max_output_tokens) / self.num_ready
        num_fitting = cache.num_blocks // max(cache.num_blocks_for(int(num_tokens)), 1)
        most = min(num_fitting, self.limits.scheduler_config.max_num_seqs)
        return min(self.num_replicas * most, self.num_ready)

    @property
    def estimated_seconds(self) -> float | None:
        """How long all rows take if they are like the sample; None without one."""
        if self.sample is None:
            return None
        return self.sample.seconds * self.num_ready / self.sample.num_rows

    def prompt_length_at(self, share: float) -> int:
        """Returns a length that this share of the prompts do not exceed."""
        goal = share * self.num_ready
        totals = itertools.accumulate(
            sorted(self.prompt_lengths.items()), lambda done, entry: (entry[0], done[1] + entry[1])
        )
        return next((length for length, number in totals if number >= goal), 0)


def plan_batch(spec: PlanSpec, *, report: Report) -> BatchPlan:
    """Starts the engine as a run would, looks at every row, and answers some.

    Memory does not grow with the number of rows.

    Args:
        spec: What is looked at.
        report: Takes a line now and then on how far it is.

    Raises:
        ConfigError: Options do not go together, or with the model or this machine.
        DatasetError: The input cannot be read, or the output could not be written.
        EngineError: The engine can go on no more.
        ModelLoadError: The model cannot be loaded.
    """
    source = open_input(spec.input)
    if spec.output is not None:
        check_output(spec.output, source.paths, overwrite=True)
    report("loading the model")
    started = time.monotonic()
    engine = LLMEngine.from_engine_args(spec.engine_args, num_prompts=estimate_num_rows(source))
    startup_seconds = time.monotonic() - started - engine.import_seconds
    try:
        check_params(engine, spec.sampling_params)
        rows = RowCensus(spec, engine)
        rows.read(source, report)
        sample = None
        if rows.samples:
            report(f"answering {len(rows.samples)} rows")
            _answer(engine, rows.samples[:1])  # the first steps take longer
            sample = _answer(engine, rows.samples)
    finally:
        engine.shutdown()
    return BatchPlan(
        num_rows=rows.num_rows,
        error_counts=rows.error_counts,
        first_errors=rows.first_errors,
        prompt_lengths=rows.prompt_lengths,
        num_shared_tokens=rows.shared.num_tokens,
        max_output_tokens=rows.max_output_tokens,
        max_blocks=rows.max_blocks,
        limits=engine.limits,
        placement=str(engine.placement),
        num_replicas=engine.placement.num_replicas,
        startup_seconds=startup_seconds,
        import_seconds=engine.import_seconds,
        sample=sample,
    )


def _answer(engine: LLMEngine, prompts: Sequence[TokenizedPrompt]) -> Sample:
    started = time.monotonic()
    for prompt in prompts:
        engine.add_request(
            prompt.request_id,
            {"prompt_token_ids": prompt.prompt_token_ids},
            prompt.sampling_params,
        )
    num_failed = num_output_tokens = 0
    while engine.has_unfinished_requests():
        for output in engine.step():
            num_failed += output.error is not None
            num_output_tokens += sum(len(one.token_ids) for one in output.outputs)
    return Sample(
        num_rows=len(prompts),
        num_failed=num_failed,
        num_output_tokens=num_output_tokens,
        seconds=time.monotonic() - started,
    )
