"""Shows what differs between two runs."""

from __future__ import annotations

import dataclasses
import json
from collections import Counter
from typing import TYPE_CHECKING

import click

from furiosa_llm.device_mesh import counted
from furiosa_llm_cli.formats import LATENCY_NAMES, count, one_line, part_of
from furiosa_llm_cli.summary import Fact, plain_facts

if TYPE_CHECKING:
    from furiosa_llm.dataset.compare_runs import Comparison, RowDifference

_MAX_SHOWN = 80
_MAX_ID = 40
_CONTEXT = 30  # letters of an answer before the first one that differs
_KINDS = {
    "answer": "with another answer",
    "ending": "that ended otherwise",
    "failed": "that failed only in {after}",
    "answered": "that failed only in {before}",
    "error": "with another error",
}
_TOTALS = {
    "num_prompt_tokens": "tokens in",
    "num_output_tokens": "tokens out",
    "num_cached_tokens": "from the prefix cache",
    "num_preemptions": "preemptions",
}
_MEANS = {
    **{name: (shown, "ms") for name, shown in LATENCY_NAMES.items()},
    "peak_blocks": ("blocks at most", ""),
    "block_seconds": ("block-seconds", ""),
}
_MILLISECONDS = 1000
_SIDES = ("before", "after")


def comparison_text(comparison: Comparison, *, before: str, after: str) -> str:
    """Returns everything as lines.

    Args:
        comparison: What is shown.
        before: What the first output is called.
        after: What the second one is called.
    """
    blocks = [plain_facts(_row_facts(comparison, before=before, after=after))]
    if comparison.changes:
        changes = [
            (change.name, f"{_value(change.before)} -> {_value(change.after)}")
            for change in comparison.changes
        ]
        blocks.append(_block("The runs", changes))
    if comparison.num_rows:
        blocks.append(_block("Of rows that both answered", _cost_facts(comparison)))
    if comparison.examples:
        number = counted(len(comparison.examples), "row")
        shown = "\n".join(_example(row) for row in comparison.examples)
        blocks.append(f"{_heading(f'The first {number} that differ')}\n{shown}")
    return "\n\n".join(blocks)


def comparison_json(comparison: Comparison) -> dict[str, object]:
    """Returns everything as JSON can hold it."""
    content = dataclasses.asdict(dataclasses.replace(comparison, kinds=Counter()))
    figures = {**comparison.totals, **comparison.means}
    del content["totals"], content["means"]
    return {
        "num_different": comparison.num_different,
        **content,
        "kinds": dict(comparison.kinds),
        "costs": {name: dict(zip(_SIDES, pair, strict=True)) for name, pair in figures.items()},
    }


def _row_facts(comparison: Comparison, *, before: str, after: str) -> list[Fact]:
    num_different = comparison.kinds.total()
    num_same = comparison.num_rows - num_different
    facts = [("rows in both", count(comparison.num_rows))]
    for name, number in ((before, comparison.num_only_before), (after, comparison.num_only_after)):
        if number:
            facts.append((f"only in {name}", count(number)))
    if comparison.num_renamed:
        note = "with another request_id: were the runs of the same input?"
        facts.append(("rows", f"{count(comparison.num_renamed)} {note}"))
    facts.append(("the same", part_of(num_same, comparison.num_rows)))
    facts.append(("different", part_of(num_different, comparison.num_rows)))
    for kind, text in _KINDS.items():
        number = comparison.kinds[kind]
        if number:
            shown = text.format(before=before, after=after)
            facts.append(("", f"{count(number)} {shown}"))
    if comparison.kinds["answer"]:
        agreeing = part_of(comparison.num_tokens_agreeing, comparison.num_tokens)
        facts.append(("tokens", f"{agreeing} come before the first that differs"))
    return facts


def _cost_facts(comparison: Comparison) -> list[Fact]:
    facts = [
        (_TOTALS[name], f"{count(int(before))} -> {count(int(after))}")
        for name, (before, after) in comparison.totals.items()
    ]
    for name, (before, after) in comparison.means.items():
        shown, unit = _MEANS[name]
        if before is None or after is None:
            continue
        factor = _MILLISECONDS if unit else 1
        ratio = f" ({after / before:.2f} times)" if before > 0 else ""
        numbers = f"{factor * before:,.2f} -> {factor * after:,.2f}"
        facts.append((shown, f"{numbers} {unit}".rstrip() + f" in the mean{ratio}"))
    return facts


def _example(row: RowDifference) -> str:
    where = "" if row.first_token is None else f", from token {count(row.first_token)} on"
    name = one_line(row.request_id, _MAX_ID)
    title = f"row {count(row.row_index)} ({name}): {row.kind}{where}"
    start = _first_difference(row.before, row.after)
    old = click.style(f"  - {_excerpt(row.before, start)}", fg="red")
    new = click.style(f"  + {_excerpt(row.after, start)}", fg="green")
    return f"{title}\n{old}\n{new}"


def _first_difference(before: str, after: str) -> int:
    """Returns how many letters two texts begin with in common."""
    pairs = enumerate(zip(before, after, strict=False))
    shorter = min(len(before), len(after))
    return next((place for place, (ours, theirs) in pairs if ours != theirs), shorter)


def _excerpt(text: str, start: int) -> str:
    first = max(start - _CONTEXT, 0)
    return ("…" if first else "") + one_line(text[first:], _MAX_SHOWN)


def _value(value: object) -> str:
    return one_line(json.dumps(value, ensure_ascii=False), _MAX_SHOWN)


def _block(heading: str, facts: list[Fact]) -> str:
    return f"{_heading(heading)}\n{plain_facts([(f'  {name}', text) for name, text in facts])}"


def _heading(text: str) -> str:
    return click.style(text, bold=True)
