"""Writes docs/options.md: every command with its options, as `--help` has them.

python -m docs.make_options_page
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import click

from furiosa_llm.config import default_cache_dir
from furiosa_llm_cli.command import SECTIONS
from furiosa_llm_cli.main import cli

PAGE = Path(__file__).parent / "options.md"
_HEADER = """\
# Options

`python -m docs.make_options_page` made this page from `furiosa-llm --help`; a test keeps it so.

An option can be given on the command line, in the environment or in a file; the first of these
that has it wins.

    furiosa-llm run --model ./llama --max-num-seqs 64
    FURIOSA_LLM_RUN_MODEL=./llama FURIOSA_LLM_RUN_MAX_NUM_SEQS=64 furiosa-llm run …
    furiosa-llm run --config run.yaml …      # model: ./llama, or run: {model: ./llama}; TOML too

- **MODEL** is a folder, or the id of a model on the Hugging Face hub, of which `--revision` chooses
  a branch, tag or commit. It is downloaded once, into the hub's own cache; `HF_HOME`,
  `HF_HUB_OFFLINE`, `HF_ENDPOINT` and proxies mean what they mean to the hub's client.
- Of an option that is given twice the last one counts, but for `--input`, which is refused. In the
  environment, those that may be given several times have spaces between their values, but for
  `FURIOSA_LLM_RUN_STOP`: it is one stop string, spaces and all, or a JSON list of them
  (`["\\n\\n", "The end"]`).
- **SIZE** is a number, or one with a unit: `k`, `m` and `g` are powers of 1,000; `K`, `M`, `G` and
  `KiB`, `MiB`, `GiB` powers of 1,024.
- **TIME** is a number of seconds, or one with `s`, `m` or `h`.
- **none** leaves a choice to the engine, wherever the text says what happens if nothing is given,
  also one that an artifact has made.
- An artifact has defaults of its own: [artifacts.md](artifacts.md).

Shell completion comes from Click, for bash:

    eval "$(_FURIOSA_LLM_COMPLETE=bash_source furiosa-llm)"
"""


def render() -> str:
    """Returns the whole page."""
    parts = [_HEADER]
    described: dict[str, tuple[str, list[tuple[str, str]]]] = {}
    for name, command in cli.commands.items():
        parts.append(f"## furiosa-llm {name}\n")
        parts += [f"{paragraph}\n" for paragraph in _paragraphs(command.help or "")]
        for heading, records in _sections(command):
            known = described.get(heading)
            if known is not None and known[1] == records:
                parts.append(f"**{heading}**: as for `{known[0]}`.\n")
                continue
            described.setdefault(heading, (name, records))
            parts.append("\n".join(_table(heading, records)) + "\n")
    return "\n".join(parts)


def _paragraphs(text: str) -> Iterator[str]:
    for paragraph in text.split("\n\n"):
        yield " ".join(paragraph.split())


def _sections(command: click.Command) -> Iterator[tuple[str, list[tuple[str, str]]]]:
    """Yields the headings of a command's help, each with its options."""
    sections: dict[str, list[tuple[str, str]]] = {section: [] for section in (*SECTIONS, "Options")}
    context = click.Context(command, info_name=command.name)
    for param in command.params:
        record = param.get_help_record(context)
        if record is not None and isinstance(param, click.Option):
            sections[getattr(param, "section", "Options")].append(record)
    yield from ((heading, records) for heading, records in sections.items() if records)


def _table(heading: str, records: list[tuple[str, str]]) -> Iterator[str]:
    yield f"| {heading} | |"
    yield "|---|---|"
    for flags, text in records:
        words = " ".join(text.replace(default_cache_dir(), "~/.cache/furiosa/llm").split())
        yield f"| `{_cell(flags)}` | {_cell(words)} |"


def _cell(text: str) -> str:
    return text.replace("|", r"\|")


def main() -> None:
    """Writes the page."""
    PAGE.write_text(render())


if __name__ == "__main__":
    main()
