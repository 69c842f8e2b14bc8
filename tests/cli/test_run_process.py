"""`furiosa-llm run` as a real process: standard input, signals, exit codes."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from tests.processes import descendants, wait_until

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
        "reached; check its name\n"
    )
    assert not output.exists()


def start_long_run(folder: Path, *options: str) -> subprocess.Popen[str]:
    rows = folder / "rows.jsonl"
    line = json.dumps({"prompt": "What is 2 + 3?", "max_tokens": 200, "ignore_eos": True})
    rows.write_text((line + "\n") * 20_000)
    output = str(folder / "out.parquet")
    return start("run", "-m", MODEL, "-i", str(rows), "-o", output, "--resume", *options)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_while_the_model_loads_ends_a_run_with_exit_code_75(
    number: signal.Signals, tmp_path: Path
) -> None:
    process = start_long_run(tmp_path)
    parts = tmp_path / "out.parquet.parts"
    assert wait_until(parts.exists, seconds=60)
    process.send_signal(number)
    _, stderr = process.communicate(timeout=60)

    assert process.returncode == 75, stderr
    assert stderr.endswith("Error: interrupted\n")
    assert "Traceback" not in stderr
    assert not parts.exists()


def test_the_first_signal_lets_running_rows_finish_and_the_second_stops_at_once(
    tmp_path: Path,
) -> None:
    options = ["--checkpoint-every", "10", "--max-num-seqs", "8", "--data-parallel-size", "1"]
    process = start_long_run(tmp_path, *options)
    parts = tmp_path / "out.parquet.parts"
    assert wait_until(lambda: any(parts.glob("part-*")), seconds=60)
    process.send_signal(signal.SIGTERM)
    _, stderr = process.communicate(timeout=60)

    assert process.returncode == 75, stderr
    assert "stopping (SIGTERM): rows that run may go on for 30 s" in stderr
    assert f"finished rows are in {parts}; the same command with --resume goes on" in stderr
    assert stderr.endswith("Error: stopped by SIGTERM before all rows were done\n")
    status = json.loads((tmp_path / "out.parquet.status.json").read_text())
    assert (status["state"], status["pid"]) == ("stopped", process.pid)
    num_saved = sum(pq.read_metadata(part).num_rows for part in parts.glob("part-*"))
    assert num_saved > 0

    options = ["--grace", "10m", "--max-num-seqs", "256", "--data-parallel-size", "1"]
    process = start_long_run(tmp_path, *options)
    status_path = tmp_path / "out.parquet.status.json"
    assert wait_until(lambda: '"answering"' in status_path.read_text(), seconds=60)
    process.send_signal(signal.SIGINT)
    assert process.stderr is not None
    for line in process.stderr:
        if "stopping (SIGINT)" in line:
            break
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate(timeout=60)

    assert process.returncode == 75, stderr
    assert stderr.endswith("Error: interrupted\n")
    assert "Traceback" not in stderr
    assert sum(pq.read_metadata(part).num_rows for part in parts.glob("part-*")) >= num_saved


def test_a_supervisor_that_signals_every_process_ends_a_run_in_good_order(tmp_path: Path) -> None:
    options = ["--checkpoint-every", "10", "--max-num-seqs", "8", "--grace", "1s"]
    process = start_long_run(tmp_path, *options, "--data-parallel-size", "2")
    parts = tmp_path / "out.parquet.parts"
    assert wait_until(lambda: any(parts.glob("part-*")), seconds=60)
    for pid in [*descendants(process.pid), process.pid]:
        with contextlib.suppress(ProcessLookupError):  # it may end with those told before it
            os.kill(pid, signal.SIGTERM)
    _, stderr = process.communicate(timeout=60)

    assert process.returncode == 75, stderr
    assert "is started again" not in stderr
    assert stderr.endswith("Error: stopped by SIGTERM before all rows were done\n")


def test_a_deadline_ends_a_run_with_exit_code_75(tmp_path: Path) -> None:
    process = start_long_run(tmp_path, "--deadline", "4s", "--grace", "1s")
    _, stderr = process.communicate(timeout=60)

    assert process.returncode == 75, stderr
    assert stderr.endswith("Error: stopped by the deadline before all rows were done\n")
    assert not (tmp_path / "out.parquet").exists()
