"""What `furiosa-llm run` loads and compiles, and how it ends, seen from whole processes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from tests.cli.test_run_process import MODEL, PATHS

NOT_NEEDED = {
    "datasets",
    "llguidance",
    "matplotlib",
    "pandas",
    "scipy",
    "sklearn",
    "torch._dynamo.eval_frame",
    "torch._inductor",
    "torch.distributed.checkpoint",
    "torch.distributed.tensor",
    "transformers.trainer",
}
# Runs as the program does, and tells at the end what `found` holds by then.
PROGRAM = """
import json, sys
from furiosa_llm_cli.main import cli
{before}
sys.argv = ["furiosa-llm", *json.loads(sys.argv[1])]
try:
    cli()
finally:
    {after}
    print(json.dumps(found))
"""


def run(folder: Path, *options: str, before: str = "", after: str = "") -> Sequence[str]:
    rows = folder / "rows.jsonl"
    rows.write_text('{"prompt": "What is 2 + 3?", "place": "here"}\n')
    output = folder / "out.parquet"
    arguments = ["run", "-m", MODEL, "-i", str(rows), "-o", str(output), "--overwrite", *options]
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM.format(before=before, after=after), json.dumps(arguments)],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": PATHS, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr
    assert pq.read_table(output, columns=["text", "place"]).to_pylist() == [
        {"text": "5", "place": "here"}
    ]
    found: list[str] = json.loads(done.stdout)
    return found


def kernels_compiled(folder: Path, cache: Path) -> list[str]:
    """Names of the functions that numba compiles in a run."""
    found = run(
        folder,
        "--cache-dir",
        str(cache),
        before="from numba.core import event\n"
        "recorder = event.RecordingListener()\n"
        "event.register('numba:compile', recorder)",
        after="found = [e.data['dispatcher'].__name__ for _, e in recorder.buffer if e.is_start]",
    )
    return sorted(set(found))


def test_a_run_loads_no_library_that_it_does_not_need(tmp_path: Path) -> None:
    loaded = set(run(tmp_path, after="found = sorted(sys.modules)"))

    assert {"torch", "transformers.models.llama.modeling_llama"} <= loaded
    assert loaded & NOT_NEEDED == set()


def test_a_second_process_compiles_no_kernel(tmp_path: Path) -> None:
    cache = tmp_path / "cache"

    first = kernels_compiled(tmp_path, cache)
    second = kernels_compiled(tmp_path, cache)

    assert {"attend", "store_tokens"} <= set(first)
    assert second == []


@pytest.mark.parametrize("options", [(), ("--data-parallel-size", "2")])
def test_a_run_ends_when_all_that_waits_for_its_end_has_run(
    options: tuple[str, ...], tmp_path: Path
) -> None:
    told = run(
        tmp_path,
        *options,
        after="import atexit; atexit.register(print, '[\"last\"]'); raise SystemExit",
    )

    assert told == ["last"]
