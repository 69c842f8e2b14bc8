"""Answers rows of mixed lengths for a long time while replicas are killed: `python -m tests.soak`.

Every row has to come back once, and memory must not grow. A row that two kills meet is taken for
their cause and has an error; all others have to be right.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import pyarrow.parquet as pq

from benchmarks.memory import tree_memory_bytes
from tests.processes import children

ROOT = Path(__file__).parents[1]
MAX_GROWTH = 0.05
MIN_SECONDS_BETWEEN_KILLS, MAX_SECONDS_BETWEEN_KILLS = 5.0, 25.0
SAMPLE_SECONDS = 1.0
EXIT_ROWS_FAILED = 3


@dataclass
class Soak:
    """A run that goes on, and what is seen of it.

    Attributes:
        seconds: How long rows are fed.
        seed: Of the rows and the kills.
        num_rows: Rows fed so far.
        num_kills: Replicas killed so far.
        samples: Seconds since the start, and bytes of the whole process tree.
    """

    seconds: float
    seed: int = 0
    num_rows: int = 0
    num_kills: int = 0
    samples: list[tuple[float, int]] = field(default_factory=list)

    def run(self, output: Path) -> None:
        """Runs to the end; raises CalledProcessError if the program does not end well."""
        command = [
            *(sys.executable, "-m", "furiosa_llm_cli", "run", "--quiet"),
            *("--model", str(ROOT / "samples" / "tiny-llama"), "--input", "-"),
            *("--output", str(output), "--data-parallel-size", "2"),
            *("--paged-attention-num-blocks", "256", "--max-processing-samples", "512"),
            "--deterministic",
        ]
        paths = os.pathsep.join([str(ROOT / "engine"), str(ROOT)])
        env = {**os.environ, "PYTHONPATH": paths}
        with subprocess.Popen(command, stdin=subprocess.PIPE, text=True, env=env) as process:
            assert process.stdin is not None
            feeder = threading.Thread(target=self._feed, args=(process.stdin,), daemon=True)
            feeder.start()
            self._watch(process)
        if process.returncode not in (0, EXIT_ROWS_FAILED):
            raise subprocess.CalledProcessError(process.returncode, command)

    def memory_bytes(self, start: float, stop: float) -> float:
        """Returns the median in a part of the time, given as shares of it."""
        span = (start * self.seconds, stop * self.seconds)
        return statistics.median(size for at, size in self.samples if span[0] <= at <= span[1])

    def _feed(self, pipe: IO[str]) -> None:
        draw = random.Random(self.seed)
        end = time.monotonic() + self.seconds
        with pipe:
            while time.monotonic() < end:
                pipe.write(json.dumps(_row(draw, self.num_rows)) + "\n")
                self.num_rows += 1

    def _watch(self, process: subprocess.Popen[str]) -> None:
        draw = random.Random(self.seed + 1)
        start = time.monotonic()
        next_kill = start + self.seconds / 20
        while process.poll() is None:
            now = time.monotonic()
            if now - start < self.seconds:
                self.samples.append((now - start, tree_memory_bytes(process.pid)))
                if now >= next_kill and (replicas := _replicas(process.pid)):
                    os.kill(draw.choice(replicas), signal.SIGKILL)
                    self.num_kills += 1
                    next_kill = now + draw.uniform(
                        MIN_SECONDS_BETWEEN_KILLS, MAX_SECONDS_BETWEEN_KILLS
                    )
            time.sleep(SAMPLE_SECONDS)


def _row(draw: random.Random, index: int) -> dict[str, Any]:
    """Makes a row, one of some thousand that come again and again."""
    number = draw.randrange(1000)
    return {
        "id": str(index),
        "prompt": f"What is {number % 97} + {number % 89}? " * (1 + number % 7),
        "max_tokens": 1 + draw.choice([3, 20, 90]),
        "ignore_eos": True,
        "key": number,
    }


def _replicas(pid: int) -> list[int]:
    return [replica for launcher in children(pid) for replica in children(launcher)]


def check_answers(output: Path, num_rows: int) -> int:
    """Makes sure that every row is there once, and that equal rows have equal answers.

    Returns:
        How many rows were taken for the cause of kills.
    """
    columns = ["request_id", "key", "num_output_tokens", "text", "error_code"]
    num_blamed = 0
    answers: dict[tuple[int, int], str] = {}
    ids = []
    for batch in pq.ParquetFile(output).iter_batches(columns=columns):
        for row in batch.to_pylist():
            ids.append(int(row["request_id"]))
            if row["error_code"] is not None:
                assert row["error_code"] == "engine_error", row
                num_blamed += 1
                continue
            key = (row["key"], row["num_output_tokens"])
            assert answers.setdefault(key, row["text"]) == row["text"], row
    assert ids == [*range(num_rows)], f"{len(ids)} rows came back of {num_rows}"
    return num_blamed


def main() -> int:
    """Runs the soak of the command line. Returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    soak = Soak(seconds=arguments.minutes * 60, seed=arguments.seed)
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder) / "out.parquet"
        soak.run(output)
        num_blamed = check_answers(output, soak.num_rows)
    early, late = soak.memory_bytes(0.1, 0.2), soak.memory_bytes(0.9, 1.0)
    print(  # noqa: T201 - this is what it is for
        f"{soak.num_rows} rows, each back once; {soak.num_kills} replicas killed, {num_blamed} "
        "rows taken for the cause, all others right; "
        f"memory {early / 2**20:.1f} MiB after a tenth of the time, {late / 2**20:.1f} MiB at the "
        f"end ({late / early - 1:+.1%})"
    )
    # A kill can only be blamed on a row that an earlier one met, and on one at most.
    is_fair = num_blamed < max(soak.num_kills, 1)
    return 0 if is_fair and late <= early * (1 + MAX_GROWTH) else 1


if __name__ == "__main__":
    sys.exit(main())
