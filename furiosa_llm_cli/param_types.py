"""Click types for the parsers that an option brings along."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import click

from furiosa_llm.options import Option, parse_bool, parse_size

_DURATION = re.compile(r"(?P<number>\d+(?:\.\d+)?)\s*(?P<unit>[smh]?)")
_UNIT_SECONDS = {"s": 1.0, "m": 60.0, "h": 3600.0}
_METAVARS: dict[Callable[[str], object], str] = {int: "N", float: "X", parse_bool: "True|False"}
_PYTHON_MESSAGES = {
    "invalid literal for int": "is not a whole number",
    "could not convert string to float": "is not a number",
}


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """How often finished rows are made durable; None where nothing is asked for."""

    rows: int | None = None
    seconds: float | None = None


class ParsedType(click.ParamType):  # type: ignore[type-arg]  # generic since Click 8.5
    """Reads a value with a function that raises ValueError when it cannot."""

    def __init__(self, parse: Callable[[str], object], name: str) -> None:
        self.name = name
        self._parse = parse

    def convert(
        self, value: object, param: click.Parameter | None, ctx: click.Context | None
    ) -> object:
        """Reads a text, or a value that a configuration file has as a number or truth value."""
        text = str(value)
        try:
            return self._parse(text)
        except ValueError as error:
            self.fail(_clear_message(error, text), param, ctx)


class ParsedChoice(click.Choice):  # type: ignore[type-arg]  # as above
    """One of a few words, which is then read by a parser."""

    def __init__(self, choices: Sequence[str], parse: Callable[[str], object]) -> None:
        super().__init__(choices)
        self._parse = parse

    def convert(
        self, value: object, param: click.Parameter | None, ctx: click.Context | None
    ) -> object:
        """Reads a word."""
        return self._parse(super().convert(value, param, ctx))


class TextsType(click.types.StringParamType):
    """A text of an option that may be given several times."""

    def split_envvar_value(self, rv: str) -> Sequence[str]:
        """Reads a variable: a JSON list of texts, or one text, which may hold spaces."""
        try:
            values = json.loads(rv)
        except ValueError:
            return [rv]
        is_list = isinstance(values, list) and all(isinstance(value, str) for value in values)
        return values if is_list else [rv]


class TemplateType(click.ParamType):  # type: ignore[type-arg]  # as above
    """A text, or `@FILE` for the text in a file."""

    name = "TEXT|@FILE"

    def convert(
        self, value: object, param: click.Parameter | None, ctx: click.Context | None
    ) -> str:
        """Returns the text."""
        text = str(value)
        if not text.startswith("@"):
            return text
        try:
            return Path(text[1:]).read_text(encoding="utf-8")
        except OSError as error:
            self.fail(f"{text[1:]}: cannot be read: {error.strerror}", param, ctx)
        except UnicodeDecodeError:
            self.fail(f"{text[1:]} is not a UTF-8 text", param, ctx)


class DurationType(click.ParamType):  # type: ignore[type-arg]  # as above
    """A time: seconds, or a number with s, m or h."""

    name = "TIME"

    def __init__(self, *, may_be_zero: bool = True) -> None:
        self._may_be_zero = may_be_zero

    def convert(
        self, value: object, param: click.Parameter | None, ctx: click.Context | None
    ) -> float:
        """Returns it in seconds."""
        seconds = _seconds(str(value), bare_unit="s")
        if seconds is None:
            self.fail(f"{value!r} is not a time; write for example 30s, 5m or 2h", param, ctx)
        if not seconds and not self._may_be_zero:
            self.fail(f"{value!r} must be more than 0; leave it out for no limit", param, ctx)
        return seconds


class CheckpointType(click.ParamType):  # type: ignore[type-arg]  # as above
    """A number of rows, or a time."""

    name = "ROWS|TIME"

    def convert(
        self, value: object, param: click.Parameter | None, ctx: click.Context | None
    ) -> Checkpoint:
        """Returns both limits; the one that is not given has its default."""
        if isinstance(value, Checkpoint):
            return value  # converted before
        seconds = _seconds(str(value), bare_unit=None)
        if seconds is not None:
            return Checkpoint(seconds=seconds)
        try:
            rows = parse_size(str(value))
        except ValueError:
            self.fail(
                f"{value!r} is neither a number of rows nor a time; write 1000, 30s or 5m",
                param,
                ctx,
            )
        if rows < 1:
            self.fail(f"{value!r} rows must be at least 1", param, ctx)
        return Checkpoint(rows=rows)


class RangeType(click.ParamType):  # type: ignore[type-arg]  # as above
    """One length, or `LOW:HIGH` for lengths drawn evenly from LOW to HIGH, both included."""

    name = "N|LOW:HIGH"

    def convert(
        self, value: object, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[int, int]:
        """Returns the shortest and the longest length."""
        if isinstance(value, tuple):
            return value  # converted before
        low, _, high = str(value).partition(":")
        try:
            lengths = parse_size(low), parse_size(high or low)
        except ValueError:
            self.fail(f"{value!r} is not a length; write 128, or 64:256", param, ctx)
        if not 1 <= lengths[0] <= lengths[1]:
            self.fail(f"{value!r} must hold lengths of at least 1, the lower first", param, ctx)
        return lengths


def click_type(entry: Option) -> click.ParamType:  # type: ignore[type-arg]  # as above
    """Returns the Click type of an option."""
    if entry.choices:
        return ParsedChoice(entry.choices, entry.parse)
    if entry.parse is str:
        return TextsType() if entry.multiple else click.STRING
    return ParsedType(entry.parse, entry.metavar or _METAVARS.get(entry.parse, "SIZE"))


def _seconds(text: str, *, bare_unit: str | None) -> float | None:
    """Reads a time; one without a unit is of `bare_unit`, or none at all."""
    match = _DURATION.fullmatch(text.strip())
    unit = match and (match["unit"] or bare_unit)
    return float(match["number"]) * _UNIT_SECONDS[unit] if match and unit else None


def _clear_message(error: ValueError, text: str) -> str:
    """Replaces the words of `int` and `float`, which are for programmers."""
    message = str(error)
    for start, clear in _PYTHON_MESSAGES.items():
        if message.startswith(start):
            return f"{text!r} {clear}"
    return message
