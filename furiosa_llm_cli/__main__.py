"""Lets `python -m furiosa_llm_cli` stand for `furiosa-llm`."""

from __future__ import annotations

from furiosa_llm_cli.main import cli

if __name__ == "__main__":
    cli(prog_name="furiosa-llm")
