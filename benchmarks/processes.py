"""Runs a command as a process of its own, and measures it from outside."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import resource
import signal
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.memory import PeakMemory

ROOT = Path(__file__).parents[1]
_MAX_PROBLEM_LENGTH = 200


@dataclass(frozen=True, slots=True, kw_only=True)
class Finished:
    """A process that has ended.

    Attributes:
        seconds: How long it ran.
        peak_memory_bytes: Proportional set size of it and its descendants, at most; 0 if nobody
            watched.
        busy_elsewhere: Share of the cores that other programs kept busy meanwhile, from 0 to 1.
        output: What it printed last, where that is a JSON object.
        problem: Why it failed; None if it did not.
    """

    seconds: float
    peak_memory_bytes: int
    busy_elsewhere: float
    output: Mapping[str, Any]
    problem: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Machine:
    """How processes are run here.

    Attributes:
        lock: A file to lock while a process runs, where others measure too; None for none.
        time_limit_seconds: A process that takes longer is killed, with all that it started.
    """

    lock: Path | None
    time_limit_seconds: float = 900

    def run(
        self,
        command: Sequence[str],
        *,
        variables: Mapping[str, str],
        watches_memory: bool = False,
    ) -> Finished:
        """Runs a command in the project's root and waits for its end.

        Args:
            command: Program and arguments.
            variables: Environment variables on top of this process's own, but for `PYTHONPATH`.
            watches_memory: Whether to sample its memory twice a second.
        """
        environment = {**os.environ, "OMP_NUM_THREADS": str(len(os.sched_getaffinity(0)))}
        environment.pop("PYTHONPATH", None)
        with _locked(self.lock):
            start, busy_before = time.perf_counter(), _busy_elsewhere_seconds()
            with subprocess.Popen(
                command,
                cwd=ROOT,
                env={**environment, **variables},
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                stdin=subprocess.DEVNULL,
                text=True,
                errors="replace",
                start_new_session=True,
            ) as process:
                memory = PeakMemory(process.pid)
                with memory if watches_memory else contextlib.nullcontext():
                    output, errors = self._wait(process)
            seconds = time.perf_counter() - start
            busy_seconds = _busy_elsewhere_seconds() - busy_before
        return Finished(
            seconds=seconds,
            peak_memory_bytes=memory.peak_bytes,
            busy_elsewhere=round(max(0.0, busy_seconds) / seconds / (os.cpu_count() or 1), 3),
            output=_last_object(output),
            problem=_problem(errors, process.returncode) if process.returncode else None,
        )

    def _wait(self, process: subprocess.Popen[str]) -> tuple[str, str]:
        try:
            return process.communicate(timeout=self.time_limit_seconds)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)  # what it started holds the pipes open, too
            process.communicate()
            return "", f"it took more than {self.time_limit_seconds:g} seconds"
        except BaseException:
            os.killpg(process.pid, signal.SIGKILL)  # Ctrl-C does not reach it
            raise


@contextlib.contextmanager
def _locked(path: Path | None) -> Iterator[None]:
    if path is None:
        yield
        return
    with path.open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _busy_elsewhere_seconds() -> float:
    """Returns how long cores have been busy with others than this process and those it waited for.

    Nice or not, they take time from what is measured: Linux shares it among sessions first.
    """
    fields = [int(field) for field in Path("/proc/stat").read_text().split("\n")[0].split()[1:]]
    user, nice, system, _, _, interrupts, soft_interrupts, stolen = fields[:8]
    busy = user + nice + system + interrupts + soft_interrupts + stolen
    own = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    own_seconds = sum(usage.ru_utime + usage.ru_stime for usage in own)
    return busy / os.sysconf("SC_CLK_TCK") - own_seconds


def _last_object(output: str) -> Mapping[str, Any]:
    for line in reversed(output.splitlines()):
        if line.startswith("{"):
            found: Mapping[str, Any] = json.loads(line)
            return found
    return {}


def _problem(errors: str, returncode: int) -> str:
    if returncode < 0 and -returncode != signal.SIGKILL:  # what it said last is not why
        return f"it crashed ({signal.Signals(-returncode).name})"
    lines = [line.strip() for line in errors.splitlines() if line.strip()]
    return lines[-1][:_MAX_PROBLEM_LENGTH] if lines else "it failed without a word"
