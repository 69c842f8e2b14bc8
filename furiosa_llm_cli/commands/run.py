"""`furiosa-llm run`."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING

import click

from furiosa_llm.config import EngineArgs
from furiosa_llm.dataset.columns import ColumnMapping
from furiosa_llm.dataset.shard import WHOLE, Shard
from furiosa_llm.sampling_params import SamplingParams
from furiosa_llm_cli.command import DISPLAY, INPUT_AND_OUTPUT, SectionedCommand
from furiosa_llm_cli.display import choose_display
from furiosa_llm_cli.options import (
    Verbosity,
    column_options,
    display_options,
    engine_options,
    option,
    sampling_options,
)
from furiosa_llm_cli.param_types import ParsedType
from furiosa_llm_cli.startup import leave_pandas_out, prepare_libraries
from furiosa_llm_cli.summary import plain_summary, print_summary
from furiosa_llm_cli.terminal import StderrConsole, is_live_terminal, say, show_logs

if TYPE_CHECKING:
    from furiosa_llm.batch_summary import BatchSummary

_EXIT_ROWS_FAILED = 3

_EXAMPLES = """\b
Examples:
  furiosa-llm run -m ./llama -i prompts.jsonl -o answers.parquet
  furiosa-llm run -m ./llama -i 'in/*.jsonl.gz' -o answers.parquet --temperature 0.8
  furiosa-llm run -m ./llama -i questions.parquet -o answers.parquet \\
    --template @question.jinja --expected-column answer --preview 10
"""


@click.command(cls=SectionedCommand, epilog=_EXAMPLES)
@engine_options
@option(
    "-i",
    "--input",
    required=True,
    metavar="INPUT",
    section=INPUT_AND_OUTPUT,
    help="Rows to answer: a .jsonl or .parquet file, a folder, a glob, - for standard input, or "
    "datasets:NAME.",
)
@option(
    "-o",
    "--output",
    required=True,
    metavar="FILE|FOLDER/",
    section=INPUT_AND_OUTPUT,
    help="Parquet file to write, or a folder of them; one row for each input row.",
)
@option(
    "--overwrite",
    is_flag=True,
    section=INPUT_AND_OUTPUT,
    help="Replace an output that exists already.",
)
@option(
    "--shard",
    type=ParsedType(Shard.parse, "I/N"),
    default=WHOLE,
    show_default=True,
    metavar="I/N",
    section=INPUT_AND_OUTPUT,
    help="Answer only each N-th row, from the I-th on; `furiosa-llm merge` joins the outputs.",
)
@column_options
@option(
    "--expected-column",
    metavar="NAME",
    section=INPUT_AND_OUTPUT,
    help="Column of the right answer; answers are counted against it.",
)
@option(
    "--step-stats",
    type=click.Path(dir_okay=False, path_type=Path),
    metavar="FILE",
    section=INPUT_AND_OUTPUT,
    help="Parquet file to write, one row for each step of the engine.",
)
@option(
    "--max-errors",
    type=click.IntRange(min=0),
    default=0,
    show_default=True,
    metavar="N",
    section=INPUT_AND_OUTPUT,
    help="Rows that may fail while the exit code is still 0.",
)
@sampling_options
@option(
    "--preview",
    type=click.IntRange(min=0),
    default=0,
    show_default=True,
    metavar="N",
    section=DISPLAY,
    help="Answers to show at the end.",
)
@display_options
@click.pass_context
def run(
    ctx: click.Context,
    *,
    engine_args: EngineArgs,
    sampling_params: SamplingParams,
    columns: ColumnMapping,
    verbosity: Verbosity,
    input: str,
    output: str,  # a Path would lose the slash that marks a folder
    overwrite: bool,
    shard: Shard,
    expected_column: str | None,
    step_stats: Path | None,
    max_errors: int,
    preview: int,
) -> None:
    """Answer a file of prompts and write a Parquet file of answers.

    A row's own sampling parameters win over those given here. A row that cannot be answered gets
    an error in place of an answer, and the exit code is 3.
    """
    with choose_display(verbosity) as display:
        start = time.monotonic()
        prepare_libraries(ctx, engine_args.cache_dir)
        from furiosa_llm.batch_job import BatchJob, run_batch_job  # loads pyarrow
        from furiosa_llm.dataset.hub_input import HUB_PREFIX

        if not input.startswith(HUB_PREFIX):  # it may give tables of pandas
            leave_pandas_out(ctx)
        import_seconds = time.monotonic() - start
        show_logs(verbosity.level)
        job = BatchJob(
            engine_args=engine_args,
            sampling_params=sampling_params,
            input=input,
            output=output,
            overwrite=overwrite,
            shard=shard,
            columns=columns,
            step_stats=step_stats,
            expected_column=expected_column,
            num_examples=preview,
        )
        summary = run_batch_job(job, on_progress=display.update)
    if not verbosity.is_quiet:
        _show(summary, import_seconds + summary.import_seconds)
    if summary.num_failed > max_errors:
        ctx.exit(_EXIT_ROWS_FAILED)


def _show(summary: BatchSummary, import_seconds: float) -> None:
    if is_live_terminal():
        print_summary(StderrConsole(), summary, import_seconds=import_seconds)
    else:
        say(plain_summary(summary, import_seconds=import_seconds))
