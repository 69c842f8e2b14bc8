"""`furiosa-llm run`."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, TypedDict

import click

from furiosa_llm.config import EngineArgs
from furiosa_llm.dataset.columns import ColumnMapping
from furiosa_llm.dataset.shard import WHOLE, Shard
from furiosa_llm.error_limit import MIN_ROWS, ErrorLimit
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
from furiosa_llm_cli.param_types import Checkpoint, CheckpointType, DurationType, ParsedType
from furiosa_llm_cli.startup import leave_pandas_out, prepare_libraries
from furiosa_llm_cli.summary import complete_text, plain_summary, print_summary
from furiosa_llm_cli.terminal import StderrConsole, is_live_terminal, say, show_logs

if TYPE_CHECKING:
    from furiosa_llm.batch.summary import BatchSummary

_EXIT_ROWS_FAILED = 3

_EXAMPLES = """\b
Examples:
  furiosa-llm run -m ./llama -i prompts.jsonl -o answers.parquet
  furiosa-llm run -m ./llama -i 'in/*.jsonl.gz' -o answers.parquet --temperature 0.8
  furiosa-llm run -m ./llama -i prompts.jsonl -o answers.parquet --resume
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
    is_given_once=True,
    help="Rows to answer: a .jsonl or .parquet file, a folder, a glob, - for standard input, or "
    "datasets:NAME[:[CONFIG:]SPLIT] for a dataset of the Hugging Face hub (SPLIT is train unless "
    "given).",
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
    help="Replace an output that exists already, and drop the rows of an unfinished run; with "
    "--resume, only those of another job.",
)
@option(
    "--resume",
    is_flag=True,
    section=INPUT_AND_OUTPUT,
    help="Go on where an earlier run of the same job ended; begin if there is none, and do "
    "nothing if the output is complete.",
)
@option(
    "--retry-failed",
    is_flag=True,
    section=INPUT_AND_OUTPUT,
    help="With --resume, do failed rows again, also those of a complete output.",
)
@option(
    "--checkpoint-every",
    type=CheckpointType(),
    metavar="N|TIME",
    section=INPUT_AND_OUTPUT,
    help="Make finished rows durable after so many of them, or after a time such as 30s or 5m; "
    "what is not given stays.  [default: 8192 rows or 60s, whichever comes first]",
)
@option(
    "--grace",
    type=DurationType(),
    default="30s",
    show_default=True,
    metavar="TIME",
    section=INPUT_AND_OUTPUT,
    help="How long rows that run may go on after the first SIGINT or SIGTERM.",
)
@option(
    "--deadline",
    type=DurationType(),
    metavar="TIME",
    section=INPUT_AND_OUTPUT,
    help="Stop after this time, such as 2h, with the grace time in it; --resume goes on.",
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
    help="Parquet file to write, one row for each step of the engine; with --resume, of those "
    "since then only.",
)
@option(
    "--failed-rows",
    type=click.Path(dir_okay=False, path_type=Path),
    metavar="FILE",
    section=INPUT_AND_OUTPUT,
    help="JSON lines file to write, the rows that failed as they were given, also those of a run "
    "that is resumed: an input to try again.",
)
@option(
    "--max-errors",
    type=ParsedType(ErrorLimit.parse, "N|N%"),
    metavar="N|N%",
    section=INPUT_AND_OUTPUT,
    help="Rows that may fail while the exit code is still 0; once more have failed, the run "
    f"stops early. A share is one of the rows done so far, of at least {MIN_ROWS}.  [default: 0, "
    "without stopping early]",
)
@option(
    "--row-timeout",
    type=DurationType(may_be_zero=False),
    metavar="TIME",
    section=INPUT_AND_OUTPUT,
    help="Longest time from a row's first step to its end, such as 90s or 2m; then it fails, "
    "with the answer so far.",
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
    resume: bool,
    retry_failed: bool,
    checkpoint_every: Checkpoint | None,
    grace: float,
    deadline: float | None,
    shard: Shard,
    expected_column: str | None,
    step_stats: Path | None,
    failed_rows: Path | None,
    max_errors: ErrorLimit | None,
    row_timeout: float | None,
    preview: int,
) -> None:
    """Answer a file of prompts and write a Parquet file of answers.

    A row's own sampling parameters win over those given here. A row that cannot be answered gets
    an error in place of an answer, and the exit code is 3.
    """
    if retry_failed and not resume:
        raise click.UsageError("--retry-failed goes with --resume only; give both")
    with choose_display(verbosity) as display:
        start = time.monotonic()
        prepare_libraries(ctx, engine_args.cache_dir)
        from furiosa_llm.batch.job import BatchJob  # loads pyarrow
        from furiosa_llm.batch.run import run_batch_job
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
            resume=resume,
            retry_failed=retry_failed,
            grace_seconds=grace,
            deadline_seconds=deadline,
            **_checkpoint(checkpoint_every),
            shard=shard,
            columns=columns,
            step_stats=step_stats,
            failed_rows=failed_rows,
            max_errors=max_errors,
            row_timeout_seconds=row_timeout,
            expected_column=expected_column,
            num_examples=preview,
        )
        summary = run_batch_job(job, on_progress=display.update)
    if not verbosity.is_quiet and summary.was_complete:
        say(complete_text(summary, output))
    elif not verbosity.is_quiet:
        _show(summary, import_seconds + summary.import_seconds)
    limit = max_errors or ErrorLimit(0)
    if limit.is_exceeded(num_failed=summary.num_failed, num_done=summary.num_rows):
        ctx.exit(_EXIT_ROWS_FAILED)


class _CheckpointOptions(TypedDict, total=False):
    rows_per_part: int
    seconds_per_part: float


def _checkpoint(every: Checkpoint | None) -> _CheckpointOptions:
    """The limits that are given; a job has a default for each."""
    options: _CheckpointOptions = {}
    if every is not None and every.rows is not None:
        options["rows_per_part"] = every.rows
    if every is not None and every.seconds is not None:
        options["seconds_per_part"] = every.seconds
    return options


def _show(summary: BatchSummary, import_seconds: float) -> None:
    if is_live_terminal():
        print_summary(StderrConsole(), summary, import_seconds=import_seconds)
    else:
        say(plain_summary(summary, import_seconds=import_seconds))
