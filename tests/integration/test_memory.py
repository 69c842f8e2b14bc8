"""Peak memory does not grow with the number of rows. Slow: it answers 110,000 of them."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
MODEL = str(ROOT / "samples" / "tiny-llama")


def peak_bytes(num_rows: int, folder: Path, *, num_replicas: int) -> int:
    """Answers one-token rows and returns the peak resident memory of the largest process."""
    rows = folder / f"{num_rows}.jsonl"
    with rows.open("w") as file:
        for index in range(num_rows):
            file.write(
                f'{{"id": "r{index}", "prompt": "What is {index % 97} + {index % 89}?", '
                f'"max_tokens": 1, "note": "row {index}"}}\n'
            )
    output = folder / f"{num_rows}.parquet"
    command = [
        *("run", "-m", MODEL, "-i", str(rows), "-o", str(output), "--quiet"),
        *("--data-parallel-size", str(num_replicas)),
    ]
    script = (
        "import resource, subprocess, sys\n"
        "subprocess.run(sys.argv[1:], check=True)\n"
        "print('peak', resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024)\n"
    )
    paths = os.pathsep.join([str(ROOT / "engine"), str(ROOT)])
    result = subprocess.run(
        [sys.executable, "-c", script, sys.executable, "-m", "furiosa_llm_cli", *command],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "PYTHONPATH": paths},
    )
    match = re.search(r"peak (\d+)", result.stdout)
    assert match is not None
    return int(match[1])


@pytest.mark.slow
@pytest.mark.parametrize("num_replicas", [1, 2])
def test_ten_times_the_rows_take_at_most_15_percent_more_memory(
    num_replicas: int, tmp_path: Path
) -> None:
    few = peak_bytes(10_000, tmp_path, num_replicas=num_replicas)
    many = peak_bytes(100_000, tmp_path, num_replicas=num_replicas)

    assert many <= 1.15 * few
