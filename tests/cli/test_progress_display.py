from __future__ import annotations

import io
import time

from rich.console import Console

from furiosa_llm_cli.display import LiveDisplay, PlainDisplay, SilentDisplay, choose_display
from furiosa_llm_cli.options import Verbosity
from furiosa_llm_cli.progress_view import ProgressTracker
from tests.cli.cli_factories import make_progress
from tests.factories import FakeClock


def make_console(width: int) -> Console:
    return Console(file=io.StringIO(), force_terminal=True, width=width, color_system=None)


def drawn(display: LiveDisplay, width: int) -> list[str]:
    console = make_console(width)
    console.print(display.render())
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue().splitlines()


def test_a_plain_display_writes_each_phase_and_a_line_every_five_seconds() -> None:
    lines: list[str] = []
    clock = FakeClock()

    with PlainDisplay(lines.append, clock=clock) as display:
        display.update(make_progress(phase="loading"))
        clock.now = 100.0
        display.update(make_progress(num_rows=1000, placement="2 replicas, 1 thread each, on cpu"))
        for tenth in range(1, 110):
            clock.now = 100.0 + tenth / 10
            display.update(
                make_progress(
                    num_rows=1000,
                    num_done=tenth,
                    num_failed=tenth // 100,
                    num_prompt_tokens=123 * tenth,
                    num_output_tokens=4 * tenth,
                    num_running=64,
                    num_waiting=5000,
                    kv_cache_usage=0.421,
                    elapsed_seconds=tenth / 10,
                )
            )
        display.update(make_progress(phase="writing"))
        display.update(make_progress(phase="done"))

    assert lines == [
        "loading the model",
        "answering 1,000 rows with 2 replicas, 1 thread each, on cpu",
        "50 of 1,000 rows (5 %), 1,230 tokens/s in, 40.0 tokens/s out, KV cache 42 % full, "
        "64 running, 5,000 waiting, 5.0 s, about 56 s left",
        "100 of 1,000 rows (10 %), 1 failed, 1,230 tokens/s in, 40.0 tokens/s out, "
        "KV cache 42 % full, 64 running, 5,000 waiting, 10 s, about 1 min 06 s left",
        "writing the output",
    ]


def test_a_plain_display_needs_no_number_of_rows() -> None:
    lines: list[str] = []
    clock = FakeClock()

    with PlainDisplay(lines.append, clock=clock) as display:
        display.update(make_progress())
        clock.now = 5.0
        display.update(make_progress(num_done=1200, elapsed_seconds=5.0))

    assert lines[1:] == [
        "answering",
        "1,200 rows, 0.0 tokens/s in, 0.0 tokens/s out, KV cache 0 % full, 0 running, 0 waiting, "
        "5.0 s",
    ]


def test_rates_are_those_of_the_last_ten_seconds() -> None:
    tracker = ProgressTracker()

    for second in range(31):
        num_tokens = 1000 * min(second, 10) + 10 * second  # fast at first, then slow
        view = tracker.view(make_progress(num_output_tokens=num_tokens), float(second))

    assert view.output_rate == 10.0


def test_nothing_is_said_of_the_time_left_while_no_one_can_know() -> None:
    def seconds_left(**changes: object) -> float | None:
        progress = make_progress(num_rows=1000, elapsed_seconds=10.0, **changes)
        return ProgressTracker().view(progress, 0.0).seconds_left(0.0)

    assert seconds_left(num_done=0) is None
    assert seconds_left(num_done=50, num_failed=50) is None
    assert seconds_left(num_done=100) == 90.0
    assert seconds_left(num_done=100, num_running=200) == 40.0  # those are half done
    assert seconds_left(num_done=100, num_resumed=50) == 180.0  # the others took no time now


def test_a_live_display_fits_the_terminal() -> None:
    clock = FakeClock()
    display = LiveDisplay(make_console(80), clock=clock)

    clock.now = 2.0
    loading = drawn(display, 80)
    clock.now = 8.0
    waiting = drawn(display, 80)
    clock.now = 2.0
    display.update(make_progress(num_rows=80))
    clock.now = 6.0
    display.update(
        make_progress(
            num_rows=80,
            num_done=40,
            num_failed=2,
            num_prompt_tokens=4000,
            num_output_tokens=400,
            num_running=20,
            kv_cache_usage=0.5,
            elapsed_seconds=4.0,
        )
    )
    answering = drawn(display, 80)
    clock.now = 8.0

    assert loading == ["⠋ loading the model  2.0 s"]
    [line] = waiting
    assert line[1:] == " loading the model  8.0 s  (the first start compiles kernels)"
    assert answering == [
        "━━━━━━━━━━━━━━━━━━━━━━━╸                         40 of 80 rows (50 %)   2 failed",
        "1,000 tokens/s in   100 tokens/s out   KV cache 50 % full",
        "20 running   0 waiting   4.0 s   about 2.5 s left",
    ]
    assert drawn(display, 80)[2] == "20 running   0 waiting   6.0 s   about 0.5 s left"
    assert len(drawn(display, 120)[0]) == 120
    for width in range(1, 40):
        assert max(len(line) for line in drawn(display, width)) <= width


def test_a_live_display_leaves_the_terminal_clean() -> None:
    console = make_console(80)
    assert isinstance(console.file, io.StringIO)
    deadline = time.monotonic() + 10

    with LiveDisplay(console) as display:
        display.update(make_progress(num_rows=10, num_done=3))
        while "3 of 10 rows (30 %)" not in console.file.getvalue():  # a thread draws it
            assert time.monotonic() < deadline
            time.sleep(0.05)
        display.update(make_progress(phase="writing"))

    assert console.file.getvalue().endswith("\x1b[1A\x1b[2K")  # back up, and the line is empty


def test_updates_are_cheap() -> None:
    for display in (LiveDisplay(make_console(80)), PlainDisplay(lambda _: None)):
        progress = make_progress(num_rows=10)
        display.update(progress)

        start = time.process_time()
        for _ in range(10_000):
            display.update(progress)

        assert time.process_time() - start < 0.2  # 20 microseconds each; it is about one


def test_quiet_is_silent_and_a_log_file_gets_plain_lines() -> None:
    assert isinstance(choose_display(Verbosity(is_quiet=True, level=0)), SilentDisplay)
    assert isinstance(choose_display(Verbosity(is_quiet=False, level=0)), PlainDisplay)
