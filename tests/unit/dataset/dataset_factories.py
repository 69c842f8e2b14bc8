"""Rows and files with short defaults, so that a test names only what it is about."""

from __future__ import annotations

import os
import subprocess
import sys
from array import array
from collections.abc import Iterable, Mapping
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from furiosa_llm.dataset.answer import AnswerRow
from furiosa_llm.dataset.columns import ColumnMapping
from furiosa_llm.dataset.manifest import Manifest
from furiosa_llm.dataset.packed_logprobs import PackedLogprobs
from furiosa_llm.dataset.reader import open_input
from furiosa_llm.dataset.record import PromptRecord, RawRow, parse_row
from furiosa_llm.dataset.schema import ANSWER_SCHEMA
from furiosa_llm.dataset.writer import AnswerWriter
from furiosa_llm.outputs import CompletionOutput, StepStats
from furiosa_llm.sampling_params import SamplingParams

DEFAULTS = SamplingParams(max_tokens=8)


def parsed(data: dict[str, object], columns: ColumnMapping | None = None) -> PromptRecord:
    return parse_row(RawRow(3, data), columns or ColumnMapping(), DEFAULTS)


def rows_of(path: Path, content: bytes, *, max_line_bytes: int = 1000) -> list[RawRow]:
    path.write_bytes(content)
    return list(open_input(str(path), max_line_bytes=max_line_bytes).rows())


def make_answer(
    row_index: int,
    *,
    text: str | None = None,
    token_ids: Iterable[int] | None = None,
    completions: tuple[CompletionOutput, ...] | None = None,
    logprobs: PackedLogprobs | None = None,
    carried: Mapping[str, object] | None = None,
) -> AnswerRow:
    return AnswerRow(
        row_index=row_index,
        request_id=str(row_index),
        text=f"answer {row_index}" if text is None else text,
        token_ids=array("i", [row_index, 7] if token_ids is None else token_ids),
        completions=completions,
        cumulative_logprob=None,
        logprobs=logprobs,
        prompt_logprobs=None,
        finish_reason="stop",
        stop_reason=None,
        error_code=None,
        error=None,
        num_prompt_tokens=4,
        num_output_tokens=2,
        num_cached_tokens=0,
        queue_s=0.5,
        ttft_s=1.0,
        tpot_s=None,
        e2e_s=1.5,
        peak_blocks=1,
        block_seconds=2.0,
        num_preemptions=0,
        num_recomputed_tokens=0,
        replica=0,
        carried=carried or {},
    )


def make_step(step: int, time_s: float = 0.5) -> StepStats:
    return StepStats(
        replica=1,
        step=step,
        time_s=time_s,
        num_running=2,
        num_waiting=3,
        num_prefill_tokens=4,
        num_decode_tokens=5,
        num_recomputed_tokens=6,
        num_cached_tokens=7,
        num_sampled_tokens=8,
        num_preemptions=9,
        num_used_blocks=10,
        num_free_blocks=11,
        num_steps_in_flight=2,
        schedule_ms=time_s / 2,
        model_ms=time_s / 3,
        sample_ms=time_s / 5,
    )


def write_answers(
    output: Path | str,
    answers: Iterable[AnswerRow],
    *,
    rows_per_part: int = 4,
    carried_schema: pa.Schema | None = None,
    overwrite: bool = False,
) -> pa.Table:
    with AnswerWriter(
        output,
        manifest=Manifest(model="tiny"),
        rows_per_part=rows_per_part,
        carried_schema=carried_schema,
        overwrite=overwrite,
    ) as writer:
        for answer in answers:
            writer.write(answer)
        writer.finish({})
    return pq.read_table(output)


def carried_table(
    output: Path,
    rows: Iterable[Mapping[str, object]],
    *,
    rows_per_part: int = 4,
    carried_schema: pa.Schema | None = None,
) -> pa.Table:
    """Writes rows that carry these columns, and returns only what they carried."""
    answers = [make_answer(index, carried=carried) for index, carried in enumerate(rows)]
    table = write_answers(
        output, answers, rows_per_part=rows_per_part, carried_schema=carried_schema
    )
    return table.select(table.column_names[len(ANSWER_SCHEMA) :])


def run_python(code: str, *arguments: str) -> str:
    """Runs code in a process of its own and returns what it printed."""
    run = subprocess.run(
        [sys.executable, "-c", code, *arguments],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    return run.stdout
