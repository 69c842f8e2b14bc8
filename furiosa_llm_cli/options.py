"""The options that commands share: those of the engine, of sampling, of the input, of the display.

Each decorator adds its options and hands the command one object in their place.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import click
from click.core import ParameterSource

from furiosa_llm.artifact_builder.options import BuildOptions
from furiosa_llm.config import EngineArgs
from furiosa_llm.dataset.columns import ColumnMapping
from furiosa_llm.errors import InvalidParamsError
from furiosa_llm.options import Option, options_of
from furiosa_llm.sampling_params import SamplingParams
from furiosa_llm_cli.command import (
    ARTIFACT,
    DISPLAY,
    ENGINE,
    INPUT_AND_OUTPUT,
    SAMPLING,
    SectionedOption,
)
from furiosa_llm_cli.config_file import config_option
from furiosa_llm_cli.environment import warn_of_unknown_variables
from furiosa_llm_cli.param_types import TemplateType, click_type

Command = Callable[..., None]


@dataclass(frozen=True, slots=True)
class _Default:
    """A default that differs from the dataclass's, and how help shows it."""

    value: object
    shown: str | None = None


_SHORT_FLAGS = {"model": "-m"}
_BUILD_SHORT_FLAGS = {
    "tensor_parallel_size": "-tp",
    "pipeline_parallel_size": "-pp",
    "data_parallel_size": "-dp",
    "prefill_buckets": "-pb",
    "decode_buckets": "-db",
}
_ENGINE_DEFAULTS = {"is_offline": _Default(True)}
_SAMPLING_DEFAULTS = {
    "temperature": _Default(0.0, "0, greedy"),
    "max_tokens": _Default(256, "256, or what the context leaves"),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Verbosity:
    """How much a command says.

    Attributes:
        is_quiet: Nothing but errors.
        level: 0 for progress and results, 1 for the engine's messages too, 2 for all of them.
    """

    is_quiet: bool
    level: int


def engine_options(command: Command) -> Command:
    """Adds the options of `EngineArgs`; the command gets `engine_args`."""
    return _from_dataclass(
        command,
        EngineArgs,
        target="engine_args",
        section=ENGINE,
        defaults=_ENGINE_DEFAULTS,
        short_flags=_SHORT_FLAGS,
    )


def build_options(command: Command) -> Command:
    """Adds the options of `BuildOptions`; the command gets `options`."""
    return _from_dataclass(
        command,
        BuildOptions,
        target="options",
        section=ARTIFACT,
        short_flags=_BUILD_SHORT_FLAGS,
    )


def sampling_options(command: Command) -> Command:
    """Adds the options of `SamplingParams`; the command gets `sampling_params`.

    A default of --max-tokens refuses no prompt: only a number that was given does.
    """

    @functools.wraps(command)
    def with_default_length(*, sampling_params: SamplingParams, **values: object) -> None:
        source = click.get_current_context().get_parameter_source("max_tokens")
        fits_context = source is ParameterSource.DEFAULT
        params = dataclasses.replace(sampling_params, fits_context=fits_context)
        command(sampling_params=params, **values)

    return _from_dataclass(
        with_default_length,
        SamplingParams,
        target="sampling_params",
        section=SAMPLING,
        defaults=_SAMPLING_DEFAULTS,
    )


def column_options(command: Command) -> Command:
    """Adds the options that say what a row's columns mean; the command gets `columns`."""

    @functools.wraps(command)
    def with_columns(
        *,
        prompt_column: str | None,
        params_column: str | None,
        template: str | None,
        **values: object,
    ) -> None:
        columns = ColumnMapping(
            prompt_column=prompt_column, params_column=params_column, template=template
        )
        command(columns=columns, **values)

    return _decorated(
        with_columns,
        option(
            "--prompt-column",
            metavar="NAME",
            section=INPUT_AND_OUTPUT,
            help="Column of the prompt, instead of prompt, messages or prompt_token_ids.",
        ),
        option(
            "--params-column",
            metavar="NAME",
            section=INPUT_AND_OUTPUT,
            help="Column of a row's own sampling parameters.  [default: sampling_params]",
        ),
        option(
            "--template",
            type=TemplateType(),
            section=INPUT_AND_OUTPUT,
            help="Jinja template that makes the prompt out of a row's columns.",
        ),
    )


def display_options(command: Command) -> Command:
    """Adds --config, --quiet and --verbose; the command gets `verbosity`."""

    @functools.wraps(command)
    def with_verbosity(*, quiet: bool, verbose: int, **values: object) -> None:
        if quiet and verbose:
            raise click.UsageError("--quiet and --verbose exclude each other; give one of them")
        if not quiet:
            warn_of_unknown_variables(click.get_current_context())
        command(verbosity=Verbosity(is_quiet=quiet, level=verbose), **values)

    return _decorated(
        with_verbosity,
        config_option(section=DISPLAY),
        option("--quiet", "-q", is_flag=True, section=DISPLAY, help="Say nothing but errors."),
        option(
            "--verbose",
            "-v",
            count=True,
            section=DISPLAY,
            help="Show the engine's messages too; -vv shows all.",
        ),
    )


def option(*flags: str, section: str, **settings: Any) -> Callable[[Command], Command]:
    """Declares an option that stands in a section of the help."""
    return click.option(*flags, cls=SectionedOption, section=section, **settings)


def _from_dataclass(
    command: Command,
    owner: type,
    *,
    target: str,
    section: str,
    defaults: Mapping[str, _Default] = MappingProxyType({}),
    short_flags: Mapping[str, str] = MappingProxyType({}),
) -> Command:
    """Adds the options of a dataclass. A required one stands in the first section."""
    entries = list(options_of(owner))

    @functools.wraps(command)
    def with_object(**values: object) -> None:
        own = {entry.name: values.pop(entry.name) for entry in entries}
        try:
            built = owner(**own)
        except InvalidParamsError as error:
            raise click.UsageError(str(error)) from error
        command(**{target: built}, **values)

    return _decorated(
        with_object,
        *(
            _click_option(
                entry,
                defaults.get(entry.name, _Default(entry.default)),
                INPUT_AND_OUTPUT if entry.required else section,
                short_flags.get(entry.name),
            )
            for entry in entries
        ),
    )


def _click_option(
    entry: Option, default: _Default, section: str, short_flag: str | None
) -> Callable[[Command], Command]:
    settings: dict[str, Any] = {"help": entry.help}
    if entry.required:
        settings["required"] = True
    else:
        settings["default"] = default.value
        settings["show_default"] = default.shown or default.value not in (None, ())
    if entry.is_flag:
        return option(f"{entry.flag}/--no-{entry.flag[2:]}", section=section, **settings)
    return option(
        *([] if short_flag is None else [short_flag]),
        entry.flag,
        type=click_type(entry),
        metavar=entry.metavar,
        multiple=entry.multiple,
        section=section,
        **settings,
    )


def _decorated(command: Command, *decorators: Callable[[Command], Command]) -> Command:
    """Applies decorators, so that help shows their options in this order."""
    for decorator in reversed(decorators):
        command = decorator(command)
    return command
