"""Real runs that are killed, resumed and compared with one that was not."""

from __future__ import annotations

import contextlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from tests.cli.test_run_process import MODEL, PATHS
from tests.processes import children, descendants, is_running, wait_until

NUM_ROWS = 240
ROWS_PER_PART = 8
ROLES = PARENT, LAUNCHER, REPLICA = "parent", "launcher", "replica"

DRIVER = Path(__file__).with_name("driver.py")
# What depends on the time, on what ran beside a row, and on where.
FREE_COLUMNS = frozenset(
    {
        "queue_s", "ttft_s", "tpot_s", "e2e_s", "block_seconds", "peak_blocks",
        "num_cached_tokens", "num_preemptions", "num_recomputed_tokens", "replica",
    }
)  # fmt: skip


def write_rows(path: Path, num_rows: int = NUM_ROWS) -> None:
    """Short and long answers, greedy and drawn, columns of their own, and rows that fail."""
    draw = random.Random(5)
    with path.open("w") as file:
        for index in range(num_rows):
            row: dict[str, object] = {
                "id": f"r{index}",
                "prompt": f"What is {draw.randrange(90)} + {draw.randrange(90)}?",
                "max_tokens": draw.choice([2, 8, 40]),
                "ignore_eos": True,
                "temperature": draw.choice([0, 0, 0.9]),
                "note": draw.choice([None, 3, "text", {"a": [1]}]),
            }
            if index % 40 == 7:
                row = {"id": f"r{index}", "text": "no prompt"}
            file.write(json.dumps(row) + "\n")


class CrashingRun:
    """A run to one output, begun again and again until it is complete."""

    def __init__(self, folder: Path, rows: Path, *, num_replicas: int) -> None:
        self.output = folder / "out.parquet"
        self.parts = folder / "out.parquet.parts"
        self.kills: Counter[str] = Counter()  # by what was killed, or where
        self._status = folder / "out.parquet.status.json"
        self._log = folder / "log.txt"
        self._arguments = [
            *("run", "-m", MODEL, "-i", str(rows), "-o", str(self.output), "--resume", "--quiet"),
            *("--checkpoint-every", str(ROWS_PER_PART), "--max-num-seqs", "8"),
            *("--data-parallel-size", str(num_replicas), "--threads-per-replica", "1"),
        ]
        self._saved: dict[int, str] = {}  # text of each row that was found in a part

    def start(self, *driver: str) -> subprocess.Popen[bytes]:
        program = [str(DRIVER), *driver] if driver else ["-m", "furiosa_llm_cli"]
        with self._log.open("ab") as log:
            return subprocess.Popen(
                [sys.executable, *program, *self._arguments],
                stdin=subprocess.DEVNULL,
                stderr=log,
                env={**os.environ, "PYTHONPATH": PATHS, "OMP_NUM_THREADS": "1"},
            )

    def kill_at_change(self, number: int, place: str) -> bool:
        """Kills the run at a change of the file system; False if it is complete before."""
        run = self.start(str(number), place)
        code = run.wait()
        if code == -signal.SIGKILL:
            self.kills[place] += 1
            self._check_parts()
            return True
        assert code in (0, 3), self._log.read_text()
        return False

    def kill_a_process(self, role: str, after_seconds: float, draw: random.Random) -> bool:
        """Kills one of the run's processes, then the run; False if it is complete before.

        Args:
            role: One of ROLES; with one replica there is only the parent.
            after_seconds: Time from the start of that process, about.
            draw: Chooses which of several, and how long the run lives on without it.
        """
        run = self.start()
        wait_until(lambda: run.poll() is not None or bool(_processes(run, role)))
        with contextlib.suppress(subprocess.TimeoutExpired):
            run.wait(after_seconds)
        tree = [run.pid, *descendants(run.pid)]
        victims = _processes(run, role)
        if not victims:
            assert run.wait() in (0, 3), self._log.read_text()
            return False
        with contextlib.suppress(ProcessLookupError):
            os.kill(draw.choice(victims), signal.SIGKILL)
            self.kills[role] += 1
        if role != PARENT:
            self._kill_soon(run, draw)
        run.wait()
        assert wait_until(lambda: not any(map(is_running, tree))), "a process lives on"
        if run.returncode in (0, 3):
            return False  # it had no need of what was killed
        assert run.returncode in (6, -signal.SIGKILL), self._log.read_text()
        self._check_parts()
        return True

    def finish(self) -> pa.Table:
        """Lets the run come to its end."""
        run = self.start()
        assert run.wait() in (0, 3), self._log.read_text()
        return self.table()

    def table(self) -> pa.Table:
        """The complete output, in which every row that was saved is as it was."""
        assert not self.parts.exists()
        assert not self._status.exists()
        table = pq.read_table(self.output)
        texts = table.column("text").to_pylist()
        assert {index: texts[index] for index in self._saved} == self._saved
        return table

    def _kill_soon(self, run: subprocess.Popen[bytes], draw: random.Random) -> None:
        """Lets the run live on a moment without one of its processes."""
        try:
            run.wait(draw.uniform(0.0, 0.5))
        except subprocess.TimeoutExpired:
            run.kill()
            self.kills[f"{PARENT} soon after"] += 1

    def _check_parts(self) -> None:
        """Every row that was in a part still is, once and the same; none told of is missing."""
        if self.output.exists():
            return  # it died after its end
        found: dict[int, str] = {}
        for path in sorted(self.parts.glob("part-*.parquet")):
            part = pq.read_table(path, columns=["row_index", "text"])
            rows = dict(zip(*(column.to_pylist() for column in part.columns), strict=True))
            assert not rows.keys() & found.keys(), "a row is there twice"
            found |= rows
        assert self._saved.items() <= found.items(), "a saved row is lost"
        self._saved = found
        if self._status.exists():
            status = json.loads(self._status.read_text())
            assert status.get("rows_saved", 0) <= len(found)


def _processes(run: subprocess.Popen[bytes], role: str) -> list[int]:
    """Those of a run that have a role, as long as the run lives."""
    if run.poll() is not None:
        return []
    if role == PARENT:
        return [run.pid]
    launchers = children(run.pid)[:1]
    return launchers if role == LAUNCHER else [pid for one in launchers for pid in children(one)]


def answers(table: pa.Table) -> pa.Table:
    """The columns that no crash may change."""
    return table.select([name for name in table.column_names if name not in FREE_COLUMNS])


def same_answers(first: pa.Table, second: pa.Table) -> bool:
    """Whether two outputs agree to the byte, in every column that does not depend on the time."""
    columns = answers(first), answers(second)
    return bool(
        columns[0].schema.remove_metadata().equals(columns[1].schema.remove_metadata())
        and columns[0].combine_chunks().equals(columns[1].combine_chunks())
    )


def seconds_of(run: CrashingRun) -> tuple[pa.Table, float]:
    """The output of a run that no one kills, and the time that it takes."""
    start = time.monotonic()
    table = run.finish()
    return table, time.monotonic() - start


def new_folder(base: Path, name: str) -> Path:
    folder = base / name
    if folder.exists():
        shutil.rmtree(folder)
    folder.mkdir()
    return folder
