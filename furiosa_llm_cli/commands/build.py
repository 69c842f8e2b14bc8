"""`furiosa-llm build`."""

from __future__ import annotations

import shlex
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import click

from furiosa_llm.artifact_builder.options import BuildOptions
from furiosa_llm.config import default_cache_dir
from furiosa_llm.library_imports.loading import loading_libraries
from furiosa_llm_cli.command import INPUT_AND_OUTPUT, SectionedCommand
from furiosa_llm_cli.formats import count, data_size, duration, percent
from furiosa_llm_cli.options import Verbosity, build_options, display_options, option
from furiosa_llm_cli.startup import prepare_libraries
from furiosa_llm_cli.summary import Fact, facts_table, plain_facts
from furiosa_llm_cli.terminal import StderrConsole, is_live_terminal, say, show_logs

if TYPE_CHECKING:
    from furiosa_llm.artifact_builder.build import BuildProgress, BuildSummary

_LINE_INTERVAL_SECONDS = 5.0
_PHASE_TEXTS = {"reading": "reading the checkpoint", "checking": "checking what was written"}

_EXAMPLES = """\b
Examples:
  furiosa-llm build ./llama ./llama-bf16 --dtype bfloat16
  furiosa-llm build ./llama ./llama-npu --devices npu:0 -tp 8
  furiosa-llm build ./llama ./llama-4k -pb 1,512 -pb 4,256 -db 64,4096 \\
    --max-seq-len-to-capture 4096
"""


@click.command(cls=SectionedCommand, epilog=_EXAMPLES)
@click.argument("model")
@click.argument("output", metavar="OUT", type=click.Path(path_type=Path))
@option(
    "--overwrite",
    is_flag=True,
    section=INPUT_AND_OUTPUT,
    help="Replace an artifact that OUT holds already; nothing else is ever replaced.",
)
@build_options
@display_options
@click.pass_context
def build(
    ctx: click.Context,
    *,
    model: str,
    output: Path,
    overwrite: bool,
    options: BuildOptions,
    verbosity: Verbosity,
) -> None:
    """Write a folder OUT with a model and the options that it is run with.

    MODEL is a checkpoint folder in Hugging Face layout, or a hub id. OUT, given as --model to run
    or bench, brings its options along; those of the command line win. OUT is a checkpoint, too:
    other programs can read it.
    """
    start = time.monotonic()
    prepare_libraries(ctx, default_cache_dir())
    with loading_libraries():
        from furiosa_llm.artifact_builder.build import build_artifact  # loads torch
    import_seconds = time.monotonic() - start
    show_logs(verbosity.level)
    progress = ProgressLines(_ignore if verbosity.is_quiet else say)
    summary = build_artifact(
        model, output, options, overwrite=overwrite, on_progress=progress.update
    )
    if not verbosity.is_quiet:
        _show(summary_facts(summary, import_seconds=import_seconds))


def summary_facts(summary: BuildSummary, *, import_seconds: float) -> list[Fact]:
    """Returns each thing worth saying about an artifact, with its name."""
    artifact = summary.artifact
    weights = f"{data_size(artifact.num_weight_bytes)}, mostly {artifact.dtype}"
    if artifact.num_weight_bytes != summary.num_stored_bytes:
        weights += f"; {data_size(summary.num_stored_bytes)} in the checkpoint"
    command = (
        f"furiosa-llm run --model {shlex.quote(str(summary.output))} "
        "--input prompts.jsonl --output answers.parquet"
    )
    return [
        ("artifact", artifact.name),
        ("model", f"{artifact.architecture}, {count(artifact.num_parameters)} parameters"),
        ("weights", weights),
        ("output", f"{summary.output}, {data_size(artifact.num_bytes)}"),
        (
            "time",
            f"{duration(import_seconds + summary.seconds)} (libraries {duration(import_seconds)})",
        ),
        ("run it", command),
    ]


class ProgressLines:
    """Writes a line for each phase, and every few seconds while weights are written."""

    def __init__(
        self, write: Callable[[str], None], clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._write = write
        self._clock = clock
        self._phase = ""
        self._next_line_at = 0.0

    def update(self, progress: BuildProgress) -> None:
        """Takes note of how far the build has come."""
        now = self._clock()
        if progress.phase != self._phase:
            self._phase = progress.phase
            self._next_line_at = now + _LINE_INTERVAL_SECONDS
            text = _PHASE_TEXTS.get(progress.phase)
            if progress.phase == "writing":
                text = f"writing {data_size(progress.num_total_bytes)} of weights"
            if text is not None:
                self._write(text)
        elif progress.phase == "writing" and now >= self._next_line_at:
            self._next_line_at = now + _LINE_INTERVAL_SECONDS
            total = progress.num_total_bytes
            self._write(
                f"{data_size(progress.num_bytes)} of {data_size(total)} written, "
                f"{percent(progress.num_bytes / total)}"
            )


def _show(facts: list[Fact]) -> None:
    if is_live_terminal():
        StderrConsole().print(facts_table(facts))
    else:
        say(plain_facts(facts))


def _ignore(_: str) -> None:
    """Reports to no one."""
