"""`furiosa-llm version`."""

from __future__ import annotations

import platform

import click

from furiosa_llm_cli.version import installed_version, program_version

_SHOWN = ("torch", "transformers", "numba", "numpy", "pyarrow", "datasets", "click", "rich")


@click.command()
def version() -> None:
    """Show the versions of the program and of the libraries it runs on."""
    click.echo(f"{'furiosa-llm':<14}{program_version()}")
    click.echo(f"{'python':<14}{platform.python_version()}")
    for name in _SHOWN:
        click.echo(f"{name:<14}{installed_version(name) or 'not installed'}")
