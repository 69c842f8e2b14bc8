"""What a run writes and says holds no secret."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest

ROOT = Path(__file__).parents[2]
SECRET = "hush1234"
ENVIRONMENT = {
    "HF_TOKEN": f"hf_{SECRET}{SECRET}",
    "AWS_SECRET_ACCESS_KEY": SECRET,
    "PYTHONPATH": f"{ROOT / 'engine'}{os.pathsep}{ROOT}",
}


def run(folder: Path, *args: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "furiosa_llm_cli", *args]
    return subprocess.run(
        command,
        cwd=folder,
        env={**os.environ, **ENVIRONMENT},
        capture_output=True,
        text=True,
        check=False,
    )


def arguments(rows: str, out: str, *more: str) -> list[str]:
    model = str(ROOT / "samples" / "tiny-llama")
    return ["run", "-m", model, "-i", rows, "-o", out, "--devices", "cpu", *more]


def test_no_secret_is_written_or_said_by_a_run(tmp_path: Path) -> None:
    # Nothing keeps a folder from being called like a URL with a password.
    folder = tmp_path / "https:" / f"me:{SECRET}@host"
    folder.mkdir(parents=True)
    rows, out, steps = (str(folder / name) for name in ("i.jsonl", "o", "s"))
    (folder / "i.jsonl").write_text('{"prompt": "What is 2 + 3?"}\n')

    done = run(tmp_path, *arguments(rows, out, "--step-stats", steps, "-vv"))

    assert done.returncode == 0, done.stderr
    assert SECRET not in done.stderr + done.stdout
    for name in ("o", "s"):
        assert SECRET.encode() not in (folder / name).read_bytes()
        assert SECRET not in str(pq.read_schema(folder / name).metadata)


@pytest.mark.parametrize("debug", [[], ["--debug"]])
def test_no_secret_is_quoted_by_an_error(tmp_path: Path, debug: list[str]) -> None:
    rows = f"https://me:{SECRET}@host/rows.jsonl?X-Amz-Signature={SECRET}"

    done = run(tmp_path, *debug, *arguments(rows, "o.parquet"))

    assert done.returncode == 4
    assert "https://host/rows.jsonl" in done.stderr
    assert SECRET not in done.stderr


@pytest.mark.parametrize("level", [0, 1, 2])
def test_no_secret_is_logged(tmp_path: Path, level: int) -> None:
    code = (
        "import logging; from furiosa_llm_cli.terminal import show_logs; "
        f"show_logs({level}); "
        f"logging.getLogger('furiosa_llm.x').warning('at %s', 'https://me:{SECRET}@host/rows')"
    )

    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env={**os.environ, **ENVIRONMENT},
        capture_output=True,
        text=True,
        check=False,
    )

    assert "at https://host/rows" in done.stderr
    assert SECRET not in done.stderr
