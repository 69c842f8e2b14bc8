"""A Click command whose help sorts the options into sections."""

from __future__ import annotations

from collections import Counter
from typing import Any

import click

INPUT_AND_OUTPUT = "Input and output"
WORKLOAD = "Workload"
ARTIFACT = "Artifact"
SAMPLING = "Sampling"
ENGINE = "Engine"
DISPLAY = "Display"
SECTIONS = (INPUT_AND_OUTPUT, WORKLOAD, ARTIFACT, SAMPLING, ENGINE, DISPLAY)


class SectionedOption(click.Option):
    """An option that knows under which heading its help stands.

    One that is to be given once is refused where it is given twice: one might take it for a list.
    Of any other the last one counts, so that a script can be told something else at its end.
    """

    def __init__(
        self, *args: Any, section: str, is_given_once: bool = False, **kwargs: Any
    ) -> None:
        super().__init__(*args, **kwargs)
        self.section = section
        self.is_given_once = is_given_once


class SectionedCommand(click.Command):
    """A command whose help has one heading for each section."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Reads the command line into the context."""
        given = list(args)  # what is read is taken out
        rest = super().parse_args(ctx, args)
        _, _, order = self.make_parser(ctx).parse_args(given)
        for param, number in Counter(order).items():
            if number > 1 and getattr(param, "is_given_once", False):
                name = max(param.opts, key=len)
                raise click.UsageError(
                    f"{name} is given {number} times, and takes one; give a folder or a glob", ctx
                )
        return rest

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Writes the options, section by section."""
        records: dict[str, list[tuple[str, str]]] = {section: [] for section in SECTIONS}
        for param in self.get_params(ctx):
            if isinstance(param, click.Argument):
                continue  # the text above the options tells of them
            record = param.get_help_record(ctx)
            if record is not None:
                records[getattr(param, "section", DISPLAY)].append(record)
        for section, entries in records.items():
            if entries:
                with formatter.section(section):
                    formatter.write_dl(entries)
