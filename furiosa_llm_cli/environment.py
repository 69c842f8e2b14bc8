"""Variables of the environment that look like options and are none."""

from __future__ import annotations

import difflib
import os
from collections.abc import Iterator

import click

from furiosa_llm_cli.terminal import say

_IS_DONE = f"{__name__}.is_done"


def warn_of_unknown_variables(ctx: click.Context) -> None:
    """Names what is set to no effect, and what may be meant; once."""
    prefix = ctx.find_root().auto_envvar_prefix
    if prefix is None or _IS_DONE in ctx.meta:
        return
    ctx.meta[_IS_DONE] = True
    known = set(_variables(ctx.find_root().command, prefix))
    for name in sorted(os.environ):
        if name.startswith(f"{prefix}_") and name not in known:
            close = difflib.get_close_matches(name, sorted(known), n=1)
            meant = f"; did you mean {close[0]}?" if close else ""
            say(f"warning: the variable {name} is no option and has no effect{meant}")


def _variables(command: click.Command, prefix: str) -> Iterator[str]:
    for param in command.params:
        if isinstance(param, click.Option) and param.name is not None:
            yield f"{prefix}_{param.name.upper()}"
    if isinstance(command, click.Group):
        for name, own in command.commands.items():
            yield from _variables(own, f"{prefix}_{name.upper().replace('-', '_')}")
