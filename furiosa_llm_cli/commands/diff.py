"""`furiosa-llm diff`."""

from __future__ import annotations

import json
from pathlib import Path

import click

from furiosa_llm_cli.command import DISPLAY, INPUT_AND_OUTPUT, SectionedCommand
from furiosa_llm_cli.diff_report import comparison_json, comparison_text
from furiosa_llm_cli.options import option

_EXIT_DIFFERENT = 3

_EXAMPLES = """\b
Examples:
  furiosa-llm diff monday.parquet tuesday.parquet
  furiosa-llm diff float32.parquet int8.parquet --max-different 20 --show 5
  furiosa-llm diff before/ after/ --json > changes.json
"""


@click.command(cls=SectionedCommand, epilog=_EXAMPLES)
@click.argument("before", metavar="BEFORE", type=click.Path(path_type=Path))
@click.argument("after", metavar="AFTER", type=click.Path(path_type=Path))
@option(
    "--max-different",
    type=click.IntRange(min=0),
    default=0,
    show_default=True,
    metavar="N",
    section=INPUT_AND_OUTPUT,
    help="Exit with 0 as long as no more than N rows came out differently, else with 3.",
)
@option(
    "--show",
    type=click.IntRange(min=0),
    default=10,
    show_default=True,
    metavar="N",
    section=DISPLAY,
    help="Show the first N rows that came out differently.",
)
@option("--json", "as_json", is_flag=True, section=DISPLAY, help="Print JSON.")
@option("--quiet", "-q", is_flag=True, section=DISPLAY, help="Print nothing; the exit code tells.")
@click.pass_context
def diff(
    ctx: click.Context,
    *,
    before: Path,
    after: Path,
    max_different: int,
    show: int,
    as_json: bool,
    quiet: bool,
) -> None:
    """Compare the outputs of two runs: what came out differently, and what it cost.

    BEFORE and AFTER are outputs of `run`, files or folders. Rows with the same row_index are
    compared: their answers, how they ended, or why they failed. Times and KV-cache use are compared
    in sum, and make no row different.
    """
    from furiosa_llm.dataset.compare_runs import compare_runs  # loads pyarrow

    comparison = compare_runs(before, after, max_examples=show)
    if not quiet:
        if as_json:
            click.echo(json.dumps(comparison_json(comparison), indent=2, ensure_ascii=False))
        else:
            click.echo(comparison_text(comparison, before=str(before), after=str(after)))
    if comparison.num_different > max_different:
        ctx.exit(_EXIT_DIFFERENT)
