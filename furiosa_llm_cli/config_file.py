"""Options from a YAML or TOML file, below the command line and the environment."""

from __future__ import annotations

import difflib
import json
import tomllib
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import click
import yaml

from furiosa_llm_cli.command import SectionedOption

# Options that the command line takes as text, and files as objects, too.
_OBJECTS: Mapping[str, Callable[[Mapping[str, object]], object]] = {
    "structured_outputs": json.dumps,
    "logit_bias": lambda biases: [f"{token}={bias}" for token, bias in biases.items()],
}
_YAML_SUFFIXES = (".yaml", ".yml")
_TOML_SUFFIX = ".toml"


def config_option(*, section: str) -> Callable[[Any], Any]:
    """Declares --config, which is read before any other option."""
    return click.option(
        "--config",
        cls=SectionedOption,
        section=section,
        type=click.Path(exists=True, dir_okay=False, path_type=Path),
        is_eager=True,
        expose_value=False,
        callback=_apply,
        help="YAML or TOML file with options by name, or by command and name; the command line "
        "and the environment win over it.",
    )


def _apply(ctx: click.Context, _param: click.Parameter, path: Path | None) -> None:
    """Makes the file's values the defaults of the command."""
    if path is not None:
        ctx.default_map = _defaults(ctx, path, _parse(path))


def _parse(path: Path) -> Mapping[str, object]:
    suffix = path.suffix.lower()
    if suffix not in (*_YAML_SUFFIXES, _TOML_SUFFIX):
        raise click.UsageError(
            f"{path}: the name of a configuration file must end in .yaml, .yml or .toml"
        )
    try:
        text = path.read_text(encoding="utf-8")
        content = tomllib.loads(text) if suffix == _TOML_SUFFIX else yaml.safe_load(text)
    except (yaml.YAMLError, tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise click.UsageError(f"{path}: cannot be parsed: {_reason(error)}") from error
    except OSError as error:
        raise click.UsageError(f"{path}: cannot be read: {error.strerror}") from error
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise click.UsageError(
            f"{path}: must hold names and values, one a line, but holds a {type(content).__name__}"
        )
    return {str(key): value for key, value in content.items()}


def _defaults(ctx: click.Context, path: Path, content: Mapping[str, object]) -> dict[str, object]:
    """Returns the values for this command: its own section wins over the top level."""
    command = ctx.command
    sections = _other_commands(ctx)
    options = {
        param.name: param
        for param in command.params
        if isinstance(param, click.Option) and param.name != "config"
    }
    own = content.get(command.name or "", {})
    if not isinstance(own, dict):
        raise click.UsageError(f"{path}: {command.name} must hold names and values, got {own!r}")
    shared = {
        key: value
        for key, value in content.items()
        if key != command.name and not (key in sections and isinstance(value, dict))
    }
    _refuse_twice(path, shared)
    _refuse_twice(path, own)
    values: dict[str, object] = {}
    for key, value in shared.items():
        values.update(_option_value(path, key, value, options, sections))
    for key, value in own.items():
        values.update(_option_value(path, str(key), value, options, ()))
    return values


def _refuse_twice(path: Path, content: Mapping[Any, object]) -> None:
    """Refuses an option that stands there in two spellings."""
    spellings: dict[str, object] = {}
    for key in content:
        first = spellings.setdefault(str(key).replace("-", "_"), key)
        if first is not key:
            raise click.UsageError(f"{path}: {first} and {key} are the same option; give one")


def _option_value(
    path: Path,
    key: str,
    value: object,
    options: Mapping[str, click.Option],
    sections: Iterable[str],
) -> dict[str, object]:
    name = key.replace("-", "_")
    found = options.get(name)
    if found is None:
        known = [known.replace("_", "-") for known in options]
        raise click.UsageError(
            f"{path}: unknown option {key!r}{_suggestion(key.replace('_', '-'), known, sections)}"
        )
    if value is None:
        raise click.UsageError(f"{path}: {key} has no value; give it one or leave the line out")
    if isinstance(value, dict) and name in _OBJECTS:
        value = _OBJECTS[name](value)
    if isinstance(value, dict) or (isinstance(value, list) and not found.multiple):
        raise click.UsageError(f"{path}: {key} must be a single value, got {value!r}")
    if found.multiple and not isinstance(value, list):
        return {name: [value]}
    return {name: value}


def _suggestion(key: str, options: Iterable[str], sections: Iterable[str]) -> str:
    close = difflib.get_close_matches(key, [*options, *sections], n=3)
    return f"; did you mean {' or '.join(close)}?" if close else ""


def _other_commands(ctx: click.Context) -> list[str]:
    parent = ctx.parent
    if parent is None or not isinstance(parent.command, click.Group):
        return []
    return [name for name in parent.command.commands if name != ctx.command.name]


def _reason(error: Exception) -> str:
    """Says on one line where a parser stopped."""
    if isinstance(error, yaml.MarkedYAMLError) and error.problem_mark is not None:
        mark = error.problem_mark
        return f"{error.problem} (line {mark.line + 1}, column {mark.column + 1})"
    return " ".join(str(error).split())
