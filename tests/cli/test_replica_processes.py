"""`furiosa-llm run` with replicas, as real processes that are killed."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
from pathlib import Path

from tests.cli.test_run_process import MODEL, start
from tests.processes import children, is_running, wait_until


def start_run(folder: Path, *options: str) -> subprocess.Popen[str]:
    rows = folder / "rows.jsonl"
    line = json.dumps({"prompt": "What is 2 + 3?", "max_tokens": 2, "ignore_eos": True})
    rows.write_text((line + "\n") * 60_000)
    output = str(folder / "out.parquet")
    return start("run", "-m", MODEL, "-i", str(rows), "-o", output, "-v", *options)


def replicas_of(run: subprocess.Popen[str]) -> list[int]:
    return [replica for launcher in children(run.pid) for replica in children(launcher)]


def test_a_run_whose_replicas_all_die_ends_with_exit_code_6_and_keeps_finished_rows(
    tmp_path: Path,
) -> None:
    run = start_run(tmp_path, "--data-parallel-size", "2")
    parts = tmp_path / "out.parquet.parts"
    assert wait_until(lambda: any(parts.glob("*.parquet")), seconds=90)

    while run.poll() is None:
        for pid in replicas_of(run):
            with contextlib.suppress(ProcessLookupError):  # it has ended since it was listed
                os.kill(pid, signal.SIGKILL)
    _, stderr = run.communicate()

    assert run.returncode == 6, stderr
    assert "replica 0 is started again: it died of signal 9" in stderr
    assert "Error: every replica has died; the last one died of signal 9" in stderr
    assert "Traceback" not in stderr
    assert any(parts.glob("*.parquet"))


def test_a_long_run_starts_replicas_by_itself_and_a_killed_run_leaves_none(tmp_path: Path) -> None:
    num_cores = len(os.sched_getaffinity(0))
    run = start_run(tmp_path)
    with run:
        assert wait_until(lambda: len(replicas_of(run)) == num_cores or num_cores == 1, seconds=90)
        started = children(run.pid) + replicas_of(run)
        run.kill()

    assert wait_until(lambda: not any(map(is_running, started)))


def test_a_run_that_is_killed_while_the_model_loads_leaves_no_process(tmp_path: Path) -> None:
    run = start_run(tmp_path, "--data-parallel-size", "2")
    with run:
        assert wait_until(lambda: bool(children(run.pid)), seconds=90)
        launchers = children(run.pid)
        run.kill()

    assert wait_until(lambda: not any(map(is_running, launchers)), seconds=5)
