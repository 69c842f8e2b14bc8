"""`furiosa-llm bench`."""

from __future__ import annotations

import dataclasses
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import click
from click.core import ParameterSource
from rich.console import Console

from furiosa_llm.config import EngineArgs
from furiosa_llm.dataset.columns import ColumnMapping
from furiosa_llm.sampling_params import SamplingParams
from furiosa_llm_cli.bench_report import plain_result, print_result, write_json
from furiosa_llm_cli.command import WORKLOAD, SectionedCommand
from furiosa_llm_cli.formats import count
from furiosa_llm_cli.machine import machine, versions
from furiosa_llm_cli.options import (
    Verbosity,
    column_options,
    display_options,
    engine_options,
    option,
    sampling_options,
)
from furiosa_llm_cli.param_types import RangeType
from furiosa_llm_cli.startup import prepare_libraries
from furiosa_llm_cli.terminal import say, show_logs

if TYPE_CHECKING:
    from furiosa_llm.benchmark.runner import BenchmarkResult

_DEFAULT_NUM_PROMPTS = 64
_ONLY_RANDOM = ("input_len", "output_len")
_ONLY_FILE = (
    "prompt_column",
    "params_column",
    "template",
    "max_tokens",
    "min_tokens",
    "stop",
    "stop_token_ids",
    "ignore_eos",
    "structured_outputs",
)

_EXAMPLES = """\b
Examples:
  furiosa-llm bench -m ./llama
  furiosa-llm bench -m ./llama --num-prompts 256 --input-len 64:512 --output-len 128
  furiosa-llm bench -m ./llama -i prompts.jsonl --json result.json
"""


@click.command(cls=SectionedCommand, epilog=_EXAMPLES)
@engine_options
@option(
    "--num-prompts",
    type=click.IntRange(min=1),
    metavar="N",
    section=WORKLOAD,
    help="Prompts in a repetition.  [default: 64, or every row of --input]",
)
@option(
    "--input-len",
    type=RangeType(),
    default="128",
    show_default=True,
    section=WORKLOAD,
    help="Tokens of a random prompt.",
)
@option(
    "--output-len",
    type=RangeType(),
    default="64",
    show_default=True,
    section=WORKLOAD,
    help="Tokens of the answer to a random prompt; it does not end before.",
)
@option(
    "-i",
    "--input",
    metavar="INPUT",
    section=WORKLOAD,
    is_given_once=True,
    help="Rows to answer in place of random prompts, as for run.",
)
@option(
    "--warmup",
    type=click.IntRange(min=0),
    default=1,
    show_default=True,
    metavar="N",
    section=WORKLOAD,
    help="Runs over a few prompts that are not measured.",
)
@option(
    "--repetitions",
    type=click.IntRange(min=1),
    default=3,
    show_default=True,
    metavar="N",
    section=WORKLOAD,
    help="Runs that are measured; random prompts are other ones in each.",
)
@option(
    "--json",
    "json",
    type=click.Path(dir_okay=False, writable=True, path_type=Path),
    metavar="FILE",
    section=WORKLOAD,
    help="File for everything that was measured, and on what.",
)
@column_options
@sampling_options
@display_options
@click.pass_context
def bench(
    ctx: click.Context,
    *,
    engine_args: EngineArgs,
    sampling_params: SamplingParams,
    columns: ColumnMapping,
    verbosity: Verbosity,
    num_prompts: int | None,
    input_len: tuple[int, int],
    output_len: tuple[int, int],
    input: str | None,
    warmup: int,
    repetitions: int,
    json: Path | None,
) -> None:
    """Measure how fast the engine answers.

    All prompts arrive at once, random ones or those of a file. The figures go to standard output.
    """
    _refuse_pointless(ctx, has_input=input is not None)
    start = time.monotonic()
    prepare_libraries(ctx, engine_args.cache_dir)
    from furiosa_llm.benchmark import runner, workload  # loads pyarrow
    from furiosa_llm.dataset.reader import open_input
    from furiosa_llm.dataset.side_files import SideFile, check_side_files

    if json is not None:
        inputs = () if input is None else open_input(input).paths
        check_side_files([SideFile.of_json(json)], inputs, None, overwrite=True)
    import_seconds = time.monotonic() - start
    show_logs(verbosity.level)
    result = runner.run_benchmark(
        runner.BenchmarkSpec(
            engine_args=engine_args,
            sampling_params=sampling_params,
            workload=workload.RandomWorkload(
                num_prompts=num_prompts or _DEFAULT_NUM_PROMPTS,
                input_len=input_len,
                output_len=output_len,
            )
            if input is None
            else workload.FileWorkload(input=input, num_prompts=num_prompts, columns=columns),
            num_warmups=warmup,
            num_repetitions=repetitions,
        ),
        report=_ignore if verbosity.is_quiet else say,
    )
    import_seconds += result.import_seconds
    if json is not None:
        write_json(
            json,
            result,
            import_seconds=import_seconds,
            machine=dataclasses.asdict(machine()),
            versions=versions(),
        )
    described = (
        _random_text(num_prompts or _DEFAULT_NUM_PROMPTS, input_len, output_len)
        if input is None
        else f"{count(result.repetitions[0].num_requests)} prompts of {input}"
    )
    _show(result, described, import_seconds)


def _refuse_pointless(ctx: click.Context, *, has_input: bool) -> None:
    """Refuses what the described would leave without effect."""
    for name in _ONLY_RANDOM if has_input else _ONLY_FILE:
        if ctx.get_parameter_source(name) in (
            ParameterSource.COMMANDLINE,
            ParameterSource.ENVIRONMENT,
        ):
            flag = "--" + name.replace("_", "-")
            raise click.UsageError(
                f"{flag} is for random prompts; leave it out or leave --input out"
                if has_input
                else f"{flag} is for the rows of --input; random prompts have --input-len and "
                "--output-len"
            )


def _show(result: BenchmarkResult, workload: str, import_seconds: float) -> None:
    if sys.stdout.isatty():
        print_result(
            Console(highlight=False), result, workload=workload, import_seconds=import_seconds
        )
    else:
        click.echo(plain_result(result, workload=workload, import_seconds=import_seconds))


def _random_text(num_prompts: int, input_len: tuple[int, int], output_len: tuple[int, int]) -> str:
    return (
        f"{count(num_prompts)} random prompts of {_lengths(input_len)} tokens, "
        f"answers of {_lengths(output_len)}"
    )


def _lengths(lengths: tuple[int, int]) -> str:
    low, high = lengths
    return str(low) if low == high else f"{low} to {high}"


def _ignore(_: str) -> None:
    """Reports to no one."""
