"""The command group, and the one place where errors become exit codes."""

from __future__ import annotations

import re
import signal
import sys
import traceback
from typing import Any, NoReturn

import click

from furiosa_llm.errors import (
    ConfigError,
    DatasetError,
    EngineError,
    FuriosaLLMError,
    ModelLoadError,
    RunStoppedError,
    TooManyErrorsError,
)
from furiosa_llm_cli.commands.bench import bench
from furiosa_llm_cli.commands.build import build
from furiosa_llm_cli.commands.collect_env import collect_env
from furiosa_llm_cli.commands.diff import diff
from furiosa_llm_cli.commands.inspect import inspect
from furiosa_llm_cli.commands.merge import merge
from furiosa_llm_cli.commands.plan import plan
from furiosa_llm_cli.commands.run import run
from furiosa_llm_cli.commands.version import version
from furiosa_llm_cli.environment import warn_of_unknown_variables
from furiosa_llm_cli.startup import OwnProcess, QuickEnd
from furiosa_llm_cli.streams import ending_without_output, prepare_streams
from furiosa_llm_cli.terminal import say
from furiosa_llm_cli.version import program_version

_EXIT_STOPPED = 75

# A RequestError is not among them: it becomes a row. One that comes here is a bug.
_EXIT_CODES: dict[type[FuriosaLLMError], int] = {
    ConfigError: 2,
    TooManyErrorsError: 3,
    DatasetError: 4,
    ModelLoadError: 5,
    EngineError: 6,
    RunStoppedError: _EXIT_STOPPED,
}
_EXIT_OUTPUT_CLOSED = 4


class _Group(click.Group):
    """Ends every failure that is not a bug with one line on stderr and its exit code."""

    def main(self, *args: Any, **settings: Any) -> NoReturn:
        """Runs the command line and exits. Without arguments, it takes those of the process."""
        if args or settings.get("args") is not None:
            self._run(*args, **settings)
        prepare_streams()
        end = QuickEnd()
        try:
            self._run(obj=OwnProcess(), **settings)
        except SystemExit as stop:
            end.expect(stop.code)
            raise

    def _run(self, *args: Any, **settings: Any) -> NoReturn:
        settings["standalone_mode"] = False
        for number in (signal.SIGTERM, signal.SIGHUP):
            if signal.getsignal(number) is signal.SIG_DFL:  # nohup has it ignored: leave that
                signal.signal(number, signal.default_int_handler)  # as Ctrl-C ends a run
        try:
            result = super().main(*args, **settings)
        except click.exceptions.NoArgsIsHelpError as error:
            say(error.format_message())
            sys.exit(error.exit_code)
        except click.UsageError as error:
            path = error.ctx.command_path if error.ctx else "furiosa-llm"
            if error.ctx is not None:  # what is missing may be there with another name
                warn_of_unknown_variables(error.ctx)
            _exit_with(f"{error.format_message()} (see '{path} --help')", error.exit_code)
        except click.ClickException as error:
            _exit_with(error.format_message(), error.exit_code)
        except click.Abort as error:
            # Click also turns EOFError into Abort, but that is a bug here: nothing asks the user.
            if isinstance(error.__cause__, EOFError):
                raise error.__cause__ from None
            _exit_with("interrupted", _EXIT_STOPPED)
        sys.exit(result)

    def make_context(self, *args: Any, **settings: Any) -> click.Context:
        """Reads the group's own options, of which --help and --version write."""
        with ending_without_output(_EXIT_OUTPUT_CLOSED):
            return super().make_context(*args, **settings)

    def invoke(self, ctx: click.Context) -> Any:
        """Runs a command; an error of the engine becomes one of the command line."""
        try:
            with ending_without_output(_EXIT_OUTPUT_CLOSED):
                return super().invoke(ctx)
        except FuriosaLLMError as error:
            code = _exit_code(error)
            if code is None:
                raise
            if ctx.params["debug"]:
                say(traceback.format_exc().rstrip("\n"))
            failure = click.ClickException(str(error))
            failure.exit_code = code  # type: ignore[misc]  # Click's own way to set it
            raise failure from error
        except KeyboardInterrupt:
            raise click.Abort from None


def _exit_code(error: FuriosaLLMError) -> int | None:
    return next((code for cls, code in _EXIT_CODES.items() if isinstance(error, cls)), None)


def _exit_with(message: str, code: int) -> NoReturn:
    line = re.sub(r"\s*\n\s*", " ", message.strip())
    say(f"Error: {line}")
    sys.exit(code)


def _show_version(ctx: click.Context, _param: click.Parameter, wanted: bool) -> None:
    if wanted and not ctx.resilient_parsing:
        click.echo(f"furiosa-llm {program_version()}")
        ctx.exit()


@click.group(
    cls=_Group,
    context_settings={
        "auto_envvar_prefix": "FURIOSA_LLM",
        "help_option_names": ["-h", "--help"],
    },
    epilog="Every option can also be set in the environment, as FURIOSA_LLM_RUN_MODEL for --model "
    "of run, or in a file (--config). FURIOSA_LLM_RUN_STOP is one string or a JSON list of them; "
    "other options that may be given several times have spaces between their values.",
)
@click.option("--debug", is_flag=True, help="Show the traceback of an error.")
@click.option(
    "--version",
    is_flag=True,
    is_eager=True,
    expose_value=False,
    callback=_show_version,
    help="Show the version and exit.",
)
def cli(*, debug: bool) -> None:
    """Offline batch inference for large language models: prompts in, Parquet out."""


cli.add_command(run)
cli.add_command(plan)
cli.add_command(bench)
cli.add_command(build)
cli.add_command(merge)
cli.add_command(diff)
cli.add_command(inspect)
cli.add_command(collect_env)
cli.add_command(version)
