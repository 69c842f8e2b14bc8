"""A disk that is full or broken: exit code 4, one line, and nothing lost that was durable."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from tests.cli.test_run_process import MODEL, start
from tests.crash.faults import NUM_ROWS, write_all

_FULL = "No space left on device"
_BROKEN = "Input/output error"


def run_with_fault(fault: str, number: int, output: Path) -> tuple[int, str]:
    run = subprocess.run(
        [sys.executable, "-m", "tests.crash.faults", fault, str(number), str(output)],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert "Traceback" not in run.stderr, run.stderr
    return run.returncode, run.stdout.strip()


# The manifest is the first file, then come parts of 4 rows, then the merged file; of each file
# there is an fsync and one of its folder.
@pytest.mark.parametrize(
    ("fault", "number", "reason", "failing"),
    [
        ("ENOSPC", 30, _FULL, "part-"),
        ("EIO", 30, _BROKEN, "part-"),
        ("fsync", 4, _BROKEN, "part-000000.parquet"),
        ("fsync", 24, _BROKEN, "merged.parquet"),
        ("replace", 3, _BROKEN, "part-000001.parquet"),
        ("replace", 12, _BROKEN, "merged.parquet"),
    ],
)
def test_a_failing_disk_is_one_line_and_costs_no_durable_row(
    fault: str, number: int, reason: str, failing: str, tmp_path: Path
) -> None:
    output = tmp_path / "out.parquet"

    code, message = run_with_fault(fault, number, output)

    assert code == 4
    assert len(message.splitlines()) == 1
    assert message.endswith(f": cannot be written: {reason}")
    assert failing in message
    assert not output.exists()
    parts = sorted((tmp_path / "out.parquet.parts").glob("part-*"))
    kept = [index for part in parts for index in pq.read_table(part)["row_index"].to_pylist()]
    assert len(set(kept)) == len(kept)
    assert sorted([*kept, *write_all(output)]) == list(range(NUM_ROWS))
    table = pq.read_table(output)
    assert table["text"].to_pylist() == [f"answer {index}" for index in range(NUM_ROWS)]


def test_writes_that_take_only_some_of_the_bytes_are_gone_on_with(tmp_path: Path) -> None:
    output = tmp_path / "out.parquet"

    code, _ = run_with_fault("short", 1, output)

    assert code == 0
    assert pq.read_table(output)["row_index"].to_pylist() == list(range(NUM_ROWS))


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 100 KiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = shutil.which("mount")
    command = [str(mount), "-t", "tmpfs", "-o", "size=100k", "tmpfs", str(folder)]
    if mount is None or subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("no file system can be mounted here")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_a_full_disk_ends_a_run_with_exit_code_4_and_it_goes_on_when_there_is_room(
    small_disk: Path, tmp_path: Path
) -> None:
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"prompt": "What is 2 + 3?", "max_tokens": 1}\n' * 300)
    output = small_disk / "out.parquet"
    options = ["--checkpoint-every", "20", "--resume", "--quiet"]
    arguments = ["run", "-m", MODEL, "-i", str(rows), "-o", str(output), *options]

    first = start(*arguments)
    _, stderr = first.communicate()

    assert first.returncode == 4, stderr
    assert f": cannot be written: {_FULL}" in stderr.splitlines()[-1]
    assert "Traceback" not in stderr
    parts = list((small_disk / "out.parquet.parts").glob("part-*.parquet"))
    num_saved = sum(pq.read_metadata(part).num_rows for part in parts)
    assert 0 < num_saved < 300

    subprocess.run(["mount", "-o", "remount,size=50m", str(small_disk)], check=True)
    second = start(*arguments)
    _, stderr = second.communicate()

    assert second.returncode == 0, stderr
    assert pq.read_table(output)["row_index"].to_pylist() == list(range(300))
