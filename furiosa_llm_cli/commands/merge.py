"""`furiosa-llm merge`."""

from __future__ import annotations

from pathlib import Path

import click

from furiosa_llm_cli.command import DISPLAY, INPUT_AND_OUTPUT, SectionedCommand
from furiosa_llm_cli.formats import count
from furiosa_llm_cli.options import option
from furiosa_llm_cli.terminal import say

_EXIT_ROWS_MISSING = 3

_EXAMPLES = """\b
Examples:
  furiosa-llm run -m ./llama -i prompts.jsonl -o answers-1.parquet --shard 1/2
  furiosa-llm run -m ./llama -i prompts.jsonl -o answers-2.parquet --shard 2/2
  furiosa-llm merge answers.parquet answers-1.parquet answers-2.parquet
"""


@click.command(cls=SectionedCommand, epilog=_EXAMPLES)
@click.argument("output", metavar="OUT")
@click.argument(
    "shards", metavar="SHARD...", nargs=-1, required=True, type=click.Path(path_type=Path)
)
@option(
    "--allow-missing",
    is_flag=True,
    section=INPUT_AND_OUTPUT,
    help="Write the rows that are there even if shards are missing; the exit code is then 3.",
)
@option(
    "--overwrite",
    is_flag=True,
    section=INPUT_AND_OUTPUT,
    help="Replace an output that exists already.",
)
@option("--quiet", "-q", is_flag=True, section=DISPLAY, help="Say nothing but errors.")
@click.pass_context
def merge(
    ctx: click.Context,
    *,
    output: str,
    shards: tuple[Path, ...],
    allow_missing: bool,
    overwrite: bool,
    quiet: bool,
) -> None:
    """Join the outputs of `run --shard` into one file OUT, as one run would have written it.

    Each SHARD... is an output of `run --shard`, a file or a folder; their order does not matter.
    They must be of one run: the same model, input, seed and options. Every row must be there once.
    """
    from furiosa_llm.dataset.join_shards import join_shards  # loads pyarrow
    from furiosa_llm.device_mesh import counted

    summary = join_shards(output, shards, overwrite=overwrite, allow_missing=allow_missing)
    if not quiet:
        failed = f", {count(summary.num_failed)} of them failed" if summary.num_failed else ""
        rows, parts = counted(summary.num_rows, "row"), counted(len(shards), "shard")
        say(f"{output}: {rows} of {parts}{failed}")
    if summary.missing:
        ctx.exit(_EXIT_ROWS_MISSING)
