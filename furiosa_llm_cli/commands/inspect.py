"""`furiosa-llm inspect`."""

from __future__ import annotations

import json
from pathlib import Path

import click

from furiosa_llm.artifact.reading import is_artifact, read_artifact
from furiosa_llm_cli.command import DISPLAY, SectionedCommand
from furiosa_llm_cli.inspect_report import (
    Report,
    artifact_report,
    checkpoint_report,
    run_report,
    unfinished_report,
)
from furiosa_llm_cli.options import option

_CONFIG_FILE = "config.json"

_EXAMPLES = """\b
Examples:
  furiosa-llm inspect answers.parquet
  furiosa-llm inspect answers.parquet --json | jq .manifest.options
  furiosa-llm inspect ./llama
"""


@click.command(cls=SectionedCommand, epilog=_EXAMPLES)
@click.argument("path", metavar="PATH", type=click.Path(path_type=Path))
@option("--json", "as_json", is_flag=True, section=DISPLAY, help="Print JSON.")
def inspect(*, path: Path, as_json: bool) -> None:
    """Tell what an output, an unfinished run, an artifact or a checkpoint is.

    PATH is an output of `run`, of which rows, errors, times and the run itself are told; one that
    is not finished; what `build` wrote; or a folder with a checkpoint. No weights are read.
    """
    report = _report(path)
    if as_json:
        click.echo(json.dumps(report.content, indent=2, ensure_ascii=False, default=str))
    else:
        click.echo(report.text())


def _report(path: Path) -> Report:
    if is_artifact(path):
        return artifact_report(path, read_artifact(path))
    if (path / _CONFIG_FILE).is_file():
        from furiosa_llm.modeling.model_outline import outline_model  # loads torch
        from furiosa_llm.replicas.sizing import weights_bytes

        outline = outline_model(str(path), dtype="auto")
        return checkpoint_report(path, outline, weights_bytes(str(path)))
    from furiosa_llm.dataset.describe_run import describe_run, describe_unfinished  # loads pyarrow

    unfinished = describe_unfinished(path)
    if unfinished is not None and not path.exists():
        return unfinished_report(path, unfinished)
    return run_report(path, describe_run(path))
