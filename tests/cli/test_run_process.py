"""`furiosa-llm run` as a real process: standard input, signals, exit codes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pyarrow.parquet as pq
import pytest

ROOT = Path(__file__).parents[2]
MODEL = str(ROOT / "samples" / "tiny-llama")
PATHS = os.pathsep.join([str(ROOT / "engine"), str(ROOT)])


def start(*arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "furiosa_llm_cli", *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": PATHS, "OMP_NUM_THREADS": "1"},
    )


def test_rows_of_standard_input_are_answered_and_a_failed_one_gives_exit_code_3(
    tmp_path: Path,
) -> None:
    output = tmp_path / "out.parquet"
    process = start("run", "--model", MODEL, "--input", "-", "--output", str(output))

    stdout, stderr = process.communicate('\ufeff{"prompt": "What is 2 + 3?"}\r\n\n{"id": 1}\n')

    assert process.returncode == 3, stderr
    assert stdout == ""
    rows = pq.read_table(output).to_pylist()
    assert [row["text"] for row in rows] == ["5", ""]
    assert [row["error_code"] for row in rows] == [None, "invalid_row"]


def test_a_missing_model_is_one_line_and_exit_code_5(tmp_path: Path) -> None:
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"prompt": "a"}\n')
    output = tmp_path / "out.parquet"
    missing = str(tmp_path / "nothing")

    process = start("run", "-m", missing, "-i", str(rows), "-o", str(output), "--quiet")
    _, stderr = process.communicate()

    assert process.returncode == 5
    assert stderr == (
        f"Error: {missing}: no such model: neither a checkpoint folder nor a hub id that can be "
        "reached; check --model\n"
    )
    assert not output.exists()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_ends_a_run_with_exit_code_75_and_leaves_no_half_output(
    number: signal.Signals, tmp_path: Path
) -> None:
    rows = tmp_path / "rows.jsonl"
    line = json.dumps({"prompt": "What is 2 + 3?", "max_tokens": 200, "ignore_eos": True})
    rows.write_text((line + "\n") * 20_000)
    output = tmp_path / "out.parquet"

    process = start("run", "-m", MODEL, "-i", str(rows), "-o", str(output))
    parts = tmp_path / "out.parquet.parts"
    deadline = time.monotonic() + 60
    while not parts.exists() and time.monotonic() < deadline and process.poll() is None:
        time.sleep(0.05)
    process.send_signal(number)
    _, stderr = process.communicate(timeout=60)

    assert process.returncode == 75, stderr
    assert stderr.endswith("Error: interrupted\n")
    assert "Traceback" not in stderr
    assert not output.exists()
