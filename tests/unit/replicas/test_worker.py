"""What a replica does when nobody listens any more."""

from __future__ import annotations

import subprocess
import sys

import pytest

PROGRAM = """
import threading
from types import SimpleNamespace
from furiosa_llm.errors import ConfigError
from furiosa_llm.replicas.worker import run_replica

class ClosedConnection:
    def recv(self):
        threading.Event().wait()  # its end is not noticed yet

    def send(self, message):
        raise BrokenPipeError

def make_core():
    {make_core}

run_replica(ClosedConnection(), make_core)
"""


@pytest.mark.parametrize(
    "make_core",
    [
        "return SimpleNamespace(limits=None)",
        "raise ConfigError('no')",
        "raise RuntimeError('a bug')",
    ],
)
def test_a_replica_ends_by_itself_when_it_cannot_report(make_core: str) -> None:
    program = PROGRAM.format(make_core=make_core)

    ended = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False, timeout=60
    )

    assert ended.returncode == 0
    assert "BrokenPipeError" not in ended.stderr
