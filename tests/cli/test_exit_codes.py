from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from furiosa_llm.errors import (
    ConfigError,
    DatasetError,
    EngineError,
    InvalidRowError,
    ModelLoadError,
    TooManyErrorsError,
)
from tests.cli.cli_factories import REQUIRED, FakeBatch, invoke, make_progress, make_summary


@pytest.mark.parametrize(
    ("error", "exit_code"),
    [
        (ConfigError("a does not go with b"), 2),
        (DatasetError("prompts.jsonl:1: not JSON"), 4),
        (ModelLoadError("m: no such model"), 5),
        (EngineError("the engine broke"), 6),
    ],
)
def test_an_error_of_the_engine_is_one_line_and_an_exit_code(
    batch: FakeBatch, error: Exception, exit_code: int
) -> None:
    batch.error = error

    outcome = invoke("run", *REQUIRED, "--quiet")

    assert (outcome.exit_code, outcome.stdout) == (exit_code, "")
    assert outcome.stderr == f"Error: {error}\n"


def test_an_error_of_several_lines_becomes_one_line(batch: FakeBatch) -> None:
    batch.error = ModelLoadError("m: cannot load:\n    tensor\n    missing\n")

    outcome = invoke("run", *REQUIRED, "--quiet")

    assert outcome.stderr == "Error: m: cannot load: tensor missing\n"


def test_debug_shows_the_traceback_above_the_error(batch: FakeBatch) -> None:
    batch.error = DatasetError("in.jsonl does not exist")

    outcome = invoke("--debug", "run", *REQUIRED, "--quiet")

    lines = outcome.stderr.splitlines()
    assert outcome.exit_code == 4
    assert lines[0] == "Traceback (most recent call last):"
    assert lines[-2] == "furiosa_llm.errors.DatasetError: in.jsonl does not exist"
    assert lines[-1] == "Error: in.jsonl does not exist"


@pytest.mark.parametrize(
    "bug",
    [AssertionError("an invariant"), InvalidRowError("should be a row"), EOFError("a short file")],
)
def test_a_bug_keeps_its_own_exception_and_ends_with_1(
    batch: FakeBatch, bug: BaseException
) -> None:
    batch.error = bug

    outcome = invoke("run", *REQUIRED, "--quiet")

    assert (outcome.exit_code, outcome.exception) == (1, bug)


def test_an_interrupted_run_ends_with_75_and_no_traceback(batch: FakeBatch) -> None:
    batch.error = KeyboardInterrupt()

    outcome = invoke("run", *REQUIRED, "--quiet")

    assert (outcome.exit_code, outcome.stderr) == (75, "Error: interrupted\n")
    assert outcome.exception is None


def test_failed_rows_end_with_3_although_the_output_is_complete(batch: FakeBatch) -> None:
    batch.summary = make_summary(num_failed=2, error_counts={"invalid_row": 2})

    outcome = invoke("run", *REQUIRED, "--quiet")

    assert (outcome.exit_code, outcome.stdout, outcome.stderr) == (3, "", "")


@pytest.mark.parametrize(
    ("max_errors", "exit_code"), [("1", 3), ("2", 0), ("5", 0), ("2%", 3), ("2.5%", 0)]
)
def test_as_many_rows_may_fail_as_max_errors_says(
    batch: FakeBatch, max_errors: str, exit_code: int
) -> None:
    batch.summary = make_summary(num_failed=2, error_counts={"invalid_row": 2})

    assert invoke("run", *REQUIRED, "--max-errors", max_errors).exit_code == exit_code


def test_a_run_that_stops_at_too_many_errors_says_so_and_ends_with_3(batch: FakeBatch) -> None:
    batch.error = TooManyErrorsError("stopped early: 3 of 9 rows failed")

    outcome = invoke("run", *REQUIRED, "--max-errors", "2")

    assert outcome.exit_code == 3
    assert outcome.stderr.endswith("Error: stopped early: 3 of 9 rows failed\n")


def test_a_run_without_failures_ends_with_0_and_a_summary(batch: FakeBatch) -> None:
    batch.progress = [
        make_progress(phase="loading"),
        make_progress(num_rows=80),
        make_progress(phase="writing"),
        make_progress(phase="done"),
    ]

    outcome = invoke("run", *REQUIRED)

    lines = outcome.stderr.splitlines()
    assert (outcome.exit_code, outcome.stdout) == (0, "")
    assert lines[:4] == [
        "loading the model",
        "answering 80 rows",
        "writing the output",
        "answered    80 of 80 rows",
    ]


def test_a_reader_that_left_ends_the_program_without_a_traceback() -> None:
    code = "from furiosa_llm_cli.main import cli; cli(['version'])"
    read_end, write_end = os.pipe()
    os.close(read_end)

    with os.fdopen(write_end, "wb") as closed:
        done = subprocess.run(
            [sys.executable, "-c", code],
            env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
            stdout=closed,
            stderr=subprocess.PIPE,
            check=False,
        )

    assert (done.returncode, done.stderr) == (4, b"")


def test_a_run_goes_on_when_no_one_reads_its_words(tmp_path: Path) -> None:
    script = tmp_path / "long_run.py"
    script.write_text(
        "from furiosa_llm_cli.terminal import StderrConsole, say\n"
        "say('first')\nsay('second')\n"
        "console = StderrConsole()\nconsole.print('third')\nconsole.print('fourth')\n"
        "print('finished')\n",
        encoding="utf-8",
    )
    read_end, write_end = os.pipe()
    os.close(read_end)

    with os.fdopen(write_end, "wb") as closed:
        done = subprocess.run(
            [sys.executable, str(script)],
            env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
            stdout=subprocess.PIPE,
            stderr=closed,
            check=False,
        )

    assert (done.returncode, done.stdout) == (0, b"finished\n")


def run_shell(command: str) -> subprocess.CompletedProcess[bytes]:
    """Runs `$LLM`, the program, in a shell that can close and redirect streams."""
    return subprocess.run(
        ["bash", "-c", command],
        env={
            **os.environ,
            "PYTHONPATH": os.pathsep.join(sys.path),
            "LLM": f"{sys.executable} -m furiosa_llm_cli",
        },
        capture_output=True,
        check=False,
    )


@pytest.mark.parametrize(
    "arguments", ["version", "--version", "--help", "run --help", "collect-env --json"]
)
@pytest.mark.parametrize(
    ("where", "reason"), [("/dev/full", "No space left on device"), ("&-", "Bad file descriptor")]
)
def test_an_output_that_cannot_be_written_is_one_line_and_exit_code_4(
    arguments: str, where: str, reason: str
) -> None:
    done = run_shell(f"$LLM {arguments} >{where}")

    assert done.stderr.decode() == f"Error: standard output cannot be written: {reason}\n"
    assert done.returncode == 4


@pytest.mark.parametrize("where", ["/dev/full", "&-"])
def test_words_that_cannot_be_written_do_not_change_how_a_run_ends(
    where: str, tmp_path: Path
) -> None:
    rows, output = tmp_path / "rows.jsonl", tmp_path / "out.parquet"
    rows.write_text('{"prompt": "What is 2 + 3?"}\n{"id": 1}\n')
    model = Path(__file__).parents[2] / "samples" / "tiny-llama"

    done = run_shell(f"$LLM run -m {model} -i {rows} -o {output} -v 2>{where}")
    refused = run_shell(f"$LLM run -m {model} -i {rows} -o {output} 2>{where}")

    assert (done.returncode, refused.returncode) == (3, 4)
    assert pq.read_table(output).num_rows == 2


def test_a_console_falls_silent_when_its_terminal_is_gone(tmp_path: Path) -> None:
    script = tmp_path / "console.py"
    script.write_text(
        "from furiosa_llm_cli.terminal import StderrConsole\n"
        "console = StderrConsole()\nconsole.print('a')\nconsole.print('b')\nprint('finished')\n"
    )

    done = run_shell(f"{sys.executable} {script} 2>/dev/full")

    assert (done.returncode, done.stdout) == (0, b"finished\n")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_signal_that_is_ignored_stays_so(number: signal.Signals) -> None:
    previous = signal.signal(number, signal.SIG_IGN)  # as nohup does
    try:
        invoke("--version")
        assert signal.getsignal(number) is signal.SIG_IGN
    finally:
        signal.signal(number, previous)
