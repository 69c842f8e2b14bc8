"""`furiosa-llm plan`."""

from __future__ import annotations

import json
import time

import click

from furiosa_llm.config import EngineArgs
from furiosa_llm.dataset.columns import ColumnMapping
from furiosa_llm.sampling_params import SamplingParams
from furiosa_llm_cli.command import DISPLAY, INPUT_AND_OUTPUT, SectionedCommand
from furiosa_llm_cli.options import (
    Verbosity,
    column_options,
    display_options,
    engine_options,
    option,
    sampling_options,
)
from furiosa_llm_cli.plan_report import plan_json, plan_text
from furiosa_llm_cli.startup import prepare_libraries
from furiosa_llm_cli.terminal import say, show_logs

_EXIT_ROWS_FAIL = 3

_EXAMPLES = """\b
Examples:
  furiosa-llm plan -m ./llama -i prompts.jsonl
  furiosa-llm plan -m ./llama -i prompts.jsonl --max-tokens 64 --sample 200
  furiosa-llm plan -m ./llama -i prompts.jsonl --sample 0 --json > plan.json
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
    help="Rows to look at, as for run.",
)
@option(
    "-o",
    "--output",
    metavar="FILE|FOLDER/",
    section=INPUT_AND_OUTPUT,
    help="Where run would write; nothing is written there, but it is looked whether that can be.",
)
@option(
    "--sample",
    type=click.IntRange(min=0),
    default=32,
    show_default=True,
    metavar="N",
    section=INPUT_AND_OUTPUT,
    help="Rows from all over the input that are answered, to learn how long all of them take; "
    "the more, the truer. 0 answers none.",
)
@column_options
@sampling_options
@option("--json", "as_json", is_flag=True, section=DISPLAY, help="Print JSON.")
@display_options
@click.pass_context
def plan(
    ctx: click.Context,
    *,
    engine_args: EngineArgs,
    sampling_params: SamplingParams,
    columns: ColumnMapping,
    verbosity: Verbosity,
    input: str,
    output: str | None,
    sample: int,
    as_json: bool,
) -> None:
    """Look at a run before it begins: whether rows can be answered, and what they take.

    The model is loaded, every row is read and checked, and a few are answered; nothing is written.
    The exit code is 3 if rows cannot be answered. Options are those of run.
    """
    start = time.monotonic()
    prepare_libraries(ctx, engine_args.cache_dir)
    from furiosa_llm.batch.plan import plan_batch  # loads pyarrow
    from furiosa_llm.batch.row_census import PlanSpec

    import_seconds = time.monotonic() - start
    show_logs(verbosity.level)
    found = plan_batch(
        PlanSpec(
            engine_args=engine_args,
            sampling_params=sampling_params,
            input=input,
            output=output,
            columns=columns,
            num_samples=sample,
        ),
        report=_ignore if verbosity.is_quiet else say,
    )
    import_seconds += found.import_seconds
    if as_json:
        content = plan_json(found, import_seconds=import_seconds)
        click.echo(json.dumps(content, indent=2, ensure_ascii=False))
    else:
        click.echo(plan_text(found, import_seconds=import_seconds))
    if found.num_failed:
        ctx.exit(_EXIT_ROWS_FAIL)


def _ignore(_: str) -> None:
    """Reports to no one."""
