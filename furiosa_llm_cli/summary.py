"""Shows how a batch went: a table in a terminal, aligned lines elsewhere."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from rich.box import ROUNDED
from rich.cells import cell_len
from rich.console import Console
from rich.table import Table
from rich.text import Text

from furiosa_llm_cli.formats import count, duration, one_line, part_of, percent, rate, share

if TYPE_CHECKING:
    from furiosa_llm.batch.summary import BatchSummary, Example

_MAX_SHOWN = 60
MAX_ERROR = 200
_MIN_WIDTH = 8
_STYLES = {"failed": "bold red", "answered": "bold green"}

Fact = tuple[str, str]


def summary_facts(summary: BatchSummary, *, import_seconds: float) -> list[Fact]:
    """Returns each thing worth saying about a batch, with its name."""
    seconds = summary.answer_seconds
    num_tokens = summary.num_prompt_tokens + summary.num_output_tokens
    cached = share(summary.num_cached_tokens, summary.num_prompt_tokens)
    facts = [("answered", f"{count(summary.num_answered)} of {count(summary.num_rows)} rows")]
    if summary.num_resumed:
        facts.append(("resumed", f"{count(summary.num_resumed)} rows were done before"))
    if summary.num_failed:
        facts.append(("failed", _failures(summary)))
        facts += [
            (code, example_error(first.row_index, first.error))
            for code, first in summary.first_errors.items()
        ]
    if summary.num_expected:
        since = " since the resume" if summary.num_resumed else ""
        facts.append(("right answers", part_of(summary.num_right, summary.num_expected) + since))
    facts += [
        (
            "tokens in",
            f"{count(summary.num_prompt_tokens)}, of them {count(summary.num_cached_tokens)} "
            f"({cached}) from the prefix cache",
        ),
        ("tokens out", count(summary.num_output_tokens)),
        (
            "speed",
            f"{_per_second(summary.num_output_tokens, seconds)} tokens/s out, "
            f"{_per_second(num_tokens, seconds)} in and out",
        ),
        ("engine", summary.placement),
        (
            "start-up",
            f"{duration(import_seconds + summary.startup_seconds)} "
            f"(libraries {duration(import_seconds)}, model {duration(summary.startup_seconds)})",
        ),
        ("answering", duration(seconds)),
        ("writing", duration(summary.write_seconds)),
        (
            "KV cache",
            f"{percent(summary.peak_kv_cache_usage)} of {count(summary.num_blocks)} blocks of "
            f"{summary.block_size} tokens at most, {count(summary.num_preemptions)} preemptions",
        ),
        ("output", str(summary.output)),
    ]
    return facts + [("note", note) for note in summary.notes]


def plain_facts(facts: Sequence[Fact]) -> str:
    """Puts facts on lines, their values one under the other."""
    width = max(len(name) for name, _ in facts) + 2
    return "\n".join(f"{name:<{width}}{value}" for name, value in facts)


def facts_table(facts: Sequence[Fact]) -> Table:
    """Puts facts in a table for a terminal."""
    table = Table.grid(padding=(0, 2))
    table.add_column(style="dim", no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in facts:
        table.add_row(name, Text(value, style=_STYLES.get(name, "")))
    return table


def plain_examples(examples: Sequence[Example]) -> str:
    """Puts each example on one line."""
    return "\n".join(
        f"{_mark(example) or '-'} {one_line(example.request_id, 20)}: "
        f"{one_line(example.prompt, _MAX_SHOWN)} -> {one_line(example.answer, _MAX_SHOWN)}"
        + ("" if example.expected is None else f" (expected {one_line(example.expected, 40)})")
        for example in examples
    )


def examples_table(examples: Sequence[Example], *, width: int) -> Table:
    """Puts examples in a table, one line each, for a terminal of `width` columns."""
    has_expected = any(example.expected is not None for example in examples)
    rows = [_example_cells(example, has_expected=has_expected) for example in examples]
    names = ["id", "prompt", "answer", *(["expected", ""] if has_expected else [])]
    needed = [
        max(cell_len(name), *(row[index].cell_len for row in rows))
        for index, name in enumerate(names)
    ]
    # Prompt and answer share what the others leave, beside three columns of frame for each.
    room = width - 3 * len(names) - 1 - sum(needed[:1] + needed[3:])
    needed[2] = max(min(needed[2], room // 2), _MIN_WIDTH)
    needed[1] = max(min(needed[1], room - needed[2]), _MIN_WIDTH)
    table = Table(title="First answers", title_justify="left", title_style="bold", box=ROUNDED)
    for name, max_width in zip(names, needed, strict=True):
        table.add_column(name, no_wrap=True, max_width=max_width)
    for row in rows:
        table.add_row(*row)
    return table


def print_summary(console: Console, summary: BatchSummary, *, import_seconds: float) -> None:
    """Draws summary and examples in a terminal."""
    console.print(facts_table(summary_facts(summary, import_seconds=import_seconds)))
    if summary.examples:
        console.print()
        console.print(examples_table(summary.examples, width=console.width))


def plain_summary(summary: BatchSummary, *, import_seconds: float) -> str:
    """Returns summary and examples as lines."""
    text = plain_facts(summary_facts(summary, import_seconds=import_seconds))
    return f"{text}\n\n{plain_examples(summary.examples)}" if summary.examples else text


def complete_text(summary: BatchSummary, output: str) -> str:
    """Returns what there is to say of a run that found its output complete."""
    rows = f"{count(summary.num_rows)} rows"
    if not summary.num_failed:
        return f"{output} is complete already ({rows}): nothing to do"
    failed = f"{count(summary.num_failed)} of them failed"
    return f"{output} is complete already ({rows}, {failed}); --retry-failed does those again"


def example_error(row_index: int, error: str) -> str:
    """Returns which row failed, and why."""
    return f"for example, row {row_index}: {one_line(error, MAX_ERROR)}"


def _example_cells(example: Example, *, has_expected: bool) -> list[Text]:
    style = {True: "green", False: "red", None: ""}[example.is_right]
    cells = [
        Text(one_line(example.request_id, 20)),
        Text(one_line(example.prompt, _MAX_SHOWN)),
        Text(one_line(example.answer, _MAX_SHOWN), style),
    ]
    if has_expected:
        cells += [Text(one_line(example.expected or "", 20)), Text(_mark(example), style)]
    return cells


def _mark(example: Example) -> str:
    return {True: "✓", False: "✗", None: ""}[example.is_right]


def _failures(summary: BatchSummary) -> str:
    most_first = sorted(summary.error_counts.items(), key=lambda entry: (-entry[1], entry[0]))
    codes = ", ".join(f"{code} {count(number)}" for code, number in most_first)
    return f"{count(summary.num_failed)} ({codes}); why is in the columns error_code and error"


def _per_second(number: int, seconds: float) -> str:
    return rate(number / seconds if seconds > 0 else 0.0)
