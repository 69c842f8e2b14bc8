from __future__ import annotations

import io
from pathlib import Path

from rich.console import Console

from furiosa_llm.batch.summary import BatchSummary, Example, FirstError
from furiosa_llm_cli.formats import duration, one_line, percent, rate
from furiosa_llm_cli.summary import plain_summary, print_summary
from tests.cli.cli_factories import make_summary

EXAMPLES = (
    Example(
        request_id="sum-01", prompt="Add 67 and 4.\n", answer="71", expected="71", is_right=True
    ),
    Example(request_id="7", prompt="[bold]x", answer="12\x1b[2J", expected="13", is_right=False),
    Example(request_id="8", prompt="Say it. " * 20, answer="no"),
)


def drawn(summary: BatchSummary, *, width: int) -> str:
    console = Console(file=io.StringIO(), force_terminal=True, width=width, color_system=None)
    print_summary(console, summary, import_seconds=4.0)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_a_plain_summary_has_every_figure() -> None:
    summary = make_summary(
        num_failed=3,
        error_counts={"never_fits": 1, "invalid_row": 2},
        num_expected=70,
        num_right=63,
        notes=("the input's column 'text' is in the output as 'input_text'",),
        examples=EXAMPLES,
    )

    assert plain_summary(summary, import_seconds=4.0) == (
        """\
answered       77 of 80 rows
failed         3 (invalid_row 2, never_fits 1); why is in the columns error_code and error
right answers  63 of 70 (90 %)
tokens in      12,000, of them 3,000 (25 %) from the prefix cache
tokens out     5,000
speed          500 tokens/s out, 1,700 in and out
engine         2 replicas, 1 thread each, on cpu
start-up       5.2 s (libraries 4.0 s, model 1.2 s)
answering      10 s
writing        0.2 s
KV cache       34.5 % of 4,096 blocks of 32 tokens at most, 2 preemptions
output         out.parquet
note           the input's column 'text' is in the output as 'input_text'

✓ sum-01: Add 67 and 4. -> 71 (expected 71)
✗ 7: [bold]x -> 12\ufffd[2J (expected 13)
- 8: Say it. Say it. Say it. Say it. Say it. Say it. Say it. Say… -> no"""
    )


def test_a_summary_tells_of_each_kind_of_error_why_the_first_row_had_it() -> None:
    summary = make_summary(
        num_failed=80,
        error_counts={"invalid_row": 80},
        first_errors={"invalid_row": FirstError(3, "no column\n'nope'" + " of many" * 50)},
    )

    lines = plain_summary(summary, import_seconds=0.0).splitlines()

    assert lines[1].startswith("failed       80 (invalid_row 80); ")
    assert lines[2].startswith("invalid_row  for example, row 3: no column 'nope' of many of")
    assert (lines[2][-1], len(lines[2])) == ("…", 13 + 20 + 200)


def test_right_answers_of_a_resumed_run_are_those_since_then() -> None:
    summary = make_summary(num_resumed=70, num_expected=10, num_right=9)

    lines = plain_summary(summary, import_seconds=0.0).splitlines()

    assert "right answers  9 of 10 (90 %) since the resume" in lines


def test_a_summary_of_nothing_divides_by_nothing() -> None:
    summary = make_summary(
        num_rows=0,
        num_prompt_tokens=0,
        num_cached_tokens=0,
        num_output_tokens=0,
        answer_seconds=0.0,
    )

    lines = plain_summary(summary, import_seconds=0.0).splitlines()

    assert lines[0] == "answered    0 of 0 rows"
    assert "speed       0.0 tokens/s out, 0.0 in and out" in lines


def test_a_terminal_gets_a_table_that_fits() -> None:
    summary = make_summary(examples=EXAMPLES, output=Path("a-long-folder/" * 8 + "out.parquet"))

    table = drawn(summary, width=80).splitlines()

    assert table[-7:] == [
        "╭────────┬───────────────────────────────────────────┬────────┬──────────┬───╮",
        "│ id     │ prompt                                    │ answer │ expected │   │",
        "├────────┼───────────────────────────────────────────┼────────┼──────────┼───┤",
        "│ sum-01 │ Add 67 and 4.                             │ 71     │ 71       │ ✓ │",
        "│ 7      │ [bold]x                                   │ 12\ufffd[2J │ 13       │ ✗ │",
        "│ 8      │ Say it. Say it. Say it. Say it. Say it. … │ no     │          │   │",
        "╰────────┴───────────────────────────────────────────┴────────┴──────────┴───╯",
    ]
    for width in (1, 5, 20, 40, 80, 120):
        assert max(map(len, drawn(summary, width=width).splitlines())) <= max(width, 20)


def test_numbers_have_the_digits_that_matter() -> None:
    assert [rate(value) for value in (0.0, 12.34, 1234.5)] == ["0.0", "12.3", "1,234"]
    assert [percent(share) for share in (0.0, 0.42, 0.975, 1.0)] == [
        "0 %",
        "42 %",
        "97.5 %",
        "100 %",
    ]
    assert [duration(seconds) for seconds in (4.51, 45.4, 185.0, 7380.0)] == [
        "4.5 s",
        "45 s",
        "3 min 05 s",
        "2 h 03 min",
    ]


def test_a_text_of_many_lines_is_shown_on_one() -> None:
    assert one_line(" a\n\tb  c ", 10) == "a b c"
    assert one_line("abcdefgh", 5) == "abcd…"
    assert one_line("a\x07b\u202ec", 10) == "a\ufffdb\ufffdc"
