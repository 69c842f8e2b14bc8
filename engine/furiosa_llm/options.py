"""One description of an option serves the dataclass, argparse and Click.

A field made by `option` carries its help text and its parser. `add_arguments` builds an argparse
parser from the fields; the command line builds Click options from the same fields.
"""

from __future__ import annotations

import argparse
import dataclasses
import enum
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from furiosa_llm.errors import ConfigError

_SIZE = re.compile(r"(?P<number>\d+(?:\.\d+)?)\s*(?P<unit>k|m|g|[KMG]|[kKMG]B|[KMG]iB|)")
_DECIMAL = {"k": 10**3, "m": 10**6, "g": 10**9, "kB": 10**3, "KB": 10**3, "MB": 10**6, "GB": 10**9}
_BINARY = {"K": 2**10, "M": 2**20, "G": 2**30, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30}
_UNITS = {"": 1, **_DECIMAL, **_BINARY}
_TRUE = frozenset({"true", "1", "yes", "on"})
_FALSE = frozenset({"false", "0", "no", "off"})


def parse_bool(text: str) -> bool:
    """Reads `True`, `1`, `yes`, `on` and their opposites, in any case.

    Raises:
        ValueError: It is none of them.
    """
    lowered = text.strip().lower()
    if lowered in _TRUE:
        return True
    if lowered in _FALSE:
        return False
    raise ValueError(f"{text!r} is not a truth value; use True or False")


def parse_size(text: str) -> int:
    """Reads a count or a number of bytes: `4096`, `4k` (4,000), `4K` (4,096), `2GiB`, `1.5m`.

    Raises:
        ValueError: It is not a whole number once the unit is applied.
    """
    match = _SIZE.fullmatch(text.strip())
    if match is None:
        raise ValueError(f"{text!r} is not a size; write for example 4096, 4k, 4K or 2GiB")
    size = float(match["number"]) * _UNITS[match["unit"]]
    if size != int(size):
        raise ValueError(f"{text!r} is not a whole number")
    return int(size)


def parse_optional(parse: Callable[[str], object]) -> Callable[[str], object]:
    """Wraps a parser so that `None` and `none` mean that the program chooses."""

    def parse_or_none(text: str) -> object:
        return None if text.strip().lower() == "none" else parse(text)

    return parse_or_none


class LeftOpen(enum.Enum):
    """What a parser returns where the engine is to choose, whatever an artifact says."""

    LEFT_OPEN = "none"


def parse_or_leave_open(parse: Callable[[str], object]) -> Callable[[str], object]:
    """Wraps a parser so that `None` and `none` leave the choice to the engine."""

    def parse_or_none(text: str) -> object:
        return LeftOpen.LEFT_OPEN if text.strip().lower() == "none" else parse(text)

    return parse_or_none


@dataclass(frozen=True, slots=True, kw_only=True)
class Option:
    """What the command line needs to know of one field.

    Attributes:
        name: The field, `max_num_seqs`.
        flag: Its option, `--max-num-seqs`.
        parse: Turns the text into a value; raises ValueError when it cannot.
        help: One or two sentences for `--help`.
        default: The field's default, `None` where the program chooses.
        required: Whether there is no default.
        choices: The values allowed, empty where any will do.
        is_flag: Whether it is given as `--name` or `--no-name`, without a value.
        metavar: What stands for the value in `--help`.
        multiple: Whether it may be given several times.
    """

    name: str
    flag: str
    parse: Callable[[str], object]
    help: str
    default: object
    required: bool
    choices: tuple[str, ...]
    is_flag: bool
    metavar: str | None
    multiple: bool


def option(
    help: str,
    *,
    parse: Callable[[str], object] = str,
    default: object = dataclasses.MISSING,
    choices: tuple[str, ...] = (),
    is_flag: bool = False,
    metavar: str | None = None,
    multiple: bool = False,
) -> Any:
    """Declares a dataclass field that is also an option of the command line."""
    metadata = {
        "help": help,
        "parse": parse,
        "choices": choices,
        "is_flag": is_flag,
        "metavar": metavar,
        "multiple": multiple,
    }
    if default is dataclasses.MISSING:
        return dataclasses.field(metadata=metadata)
    return dataclasses.field(default=default, metadata=metadata)


def options_of(owner: type) -> Iterator[Option]:
    """Yields the options that a dataclass declares, in the order of its fields."""
    for field in dataclasses.fields(owner):
        if "help" not in field.metadata:
            continue
        required = field.default is dataclasses.MISSING
        yield Option(
            name=field.name,
            flag="--" + field.name.replace("_", "-"),
            default=None if required else field.default,
            required=required,
            **field.metadata,
        )


def check_types(owner: Any) -> None:
    """Makes sure that the fields of a dataclass hold what their annotations say.

    Raises:
        ConfigError: One does not.
    """
    for field in dataclasses.fields(owner):
        wanted, value = str(field.type), getattr(owner, field.name)
        kinds = [kind.partition("[")[0] for kind in wanted.split(" | ")]
        kind = "None" if value is None else type(value).__name__
        if kind not in kinds and not (kind == "int" and "float" in kinds):
            raise ConfigError(
                f"{field.name} must be {wanted.replace(' | ', ' or ')}, got {value!r}"
            )


def add_arguments(owner: type, parser: argparse.ArgumentParser) -> argparse.ArgumentParser:
    """Adds the options that a dataclass declares to an argparse parser, and returns it."""
    for entry in options_of(owner):
        if entry.is_flag:
            parser.add_argument(
                entry.flag,
                action=argparse.BooleanOptionalAction,
                default=entry.default,
                help=entry.help,
            )
            continue
        # argparse looks for what the parser made of a text, which need not be a choice any more.
        choices = entry.choices if entry.parse is str else ()
        parser.add_argument(
            entry.flag,
            type=_named(entry.parse),
            default=entry.default,
            required=entry.required,
            choices=choices or None,
            metavar=entry.metavar or (None if choices else "|".join(entry.choices) or None),
            help=entry.help,
        )
    return parser


def _named(parse: Callable[[str], object]) -> Callable[[str], object]:
    """Keeps a parser's own message: argparse hides that of a plain ValueError."""

    def parse_argument(text: str) -> object:
        try:
            return parse(text)
        except ValueError as error:
            raise argparse.ArgumentTypeError(str(error)) from error

    return parse_argument
