"""Runs code in a Python of its own: what is imported first can be told in no other way."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]


def run_code(code: str) -> subprocess.CompletedProcess[str]:
    """Runs code from the root of the project, with the engine and the CLI to import."""
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=False,
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT / "engine"), str(ROOT)])},
    )
    assert done.returncode == 0, done.stderr
    return done
