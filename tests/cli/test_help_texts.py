from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import click
import pytest

from furiosa_llm_cli.main import cli
from tests.cli.cli_factories import invoke

ROOT = Path(__file__).parents[2]
HEAVY = ("torch", "transformers", "pyarrow", "numba", "numpy", "datasets", "jinja2")
COMMANDS = sorted(cli.commands)


def run_python(code: str) -> str:
    environment = {**os.environ, "PYTHONPATH": f"{ROOT / 'engine'}{os.pathsep}{ROOT}"}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True
    )
    return done.stdout


@pytest.mark.parametrize(
    "args", [["--help"], ["version"], *([command, "-h"] for command in COMMANDS)]
)
def test_help_loads_no_large_library(args: list[str]) -> None:
    code = f"""
import sys
from furiosa_llm_cli.main import cli
try:
    cli({args!r}, prog_name="furiosa-llm")
except SystemExit as stop:
    print("exit", stop.code or 0, [name for name in {HEAVY!r} if name in sys.modules])
"""

    assert run_python(code).splitlines()[-1] == "exit 0 []"


@pytest.mark.parametrize("flag", ["-h", "--help"])
@pytest.mark.parametrize("command", COMMANDS)
def test_each_command_has_help_for_every_option(command: str, flag: str) -> None:
    outcome = invoke(command, flag)

    assert (outcome.exit_code, outcome.stderr) == (0, "")
    for param in cli.commands[command].params:
        if isinstance(param, click.Argument):
            assert outcome.stdout.count(param.human_readable_name) > 1  # usage and text
            continue
        assert isinstance(param, click.Option)
        assert param.help, param.name
        assert param.opts[-1] in outcome.stdout


def test_the_help_of_run_has_sections_in_order() -> None:
    lines = invoke("run", "--help").stdout.splitlines()

    headings = [line for line in lines if line.endswith(":") and not line.startswith(" ")]
    assert headings == ["Input and output:", "Sampling:", "Engine:", "Display:"]


def test_the_help_of_run_says_that_it_is_greedy() -> None:
    words = " ".join(invoke("run", "--help").stdout.split())

    assert "[default: (0, greedy)]" in words
    assert "--is-offline TRUE|FALSE Order the work for throughput" in words


def test_no_command_shows_the_help() -> None:
    outcome = invoke()

    assert outcome.exit_code == 2
    assert outcome.stderr == invoke("--help").stdout


def test_the_version_is_that_of_the_project() -> None:
    for args in (["--version"], ["version"]):
        first_line = invoke(*args).stdout.splitlines()[0]
        assert first_line.split()[:2] == ["furiosa-llm", "0.1.0"]


def test_the_program_runs_without_an_installation() -> None:
    code = (
        "import sys, runpy; sys.argv = ['x', '--version']; "
        "runpy.run_module('furiosa_llm_cli', run_name='__main__')"
    )

    assert run_python(code).startswith("furiosa-llm 0.1.0")
