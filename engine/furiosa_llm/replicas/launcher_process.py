"""The parent's hold on the launcher."""

from __future__ import annotations

import json
import multiprocessing
import os
import subprocess
import sys
from multiprocessing.connection import Connection
from multiprocessing.reduction import send_handle

from furiosa_llm.errors import EngineError
from furiosa_llm.replicas.messages import Launch, NotStarted, Reap, Reaped, Start

# Not by multiprocessing, which would run the user's main module again.
_PROGRAM = """
import json, sys
sys.path[:] = json.loads(sys.argv[2])
from furiosa_llm.replicas.launcher_main import main
main(int(sys.argv[1]))
"""
_END_SECONDS = 5.0


class LauncherProcess:
    """Starts the launcher, asks it for replicas, and ends it."""

    def __init__(self, launch: Launch) -> None:
        """Starts the launcher; it loads the model meanwhile."""
        self._control, theirs = multiprocessing.Pipe()
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-c", _PROGRAM, str(theirs.fileno()), json.dumps(sys.path)],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,  # the parent's is for data
                env={**os.environ, "TOKENIZERS_PARALLELISM": "false"},  # no threads before a fork
                process_group=0,  # Ctrl-C is for the parent to handle
            )
        self._control.send(launch)

    def wait_until_ready(self) -> None:
        """Waits until what replicas share is loaded.

        Raises:
            ModelLoadError: The model or its tokenizer cannot be loaded or is not supported.
            ConfigError: An option does not go with the model or with this machine.
            EngineError: The launcher died.
        """
        try:
            answer = self._control.recv()
        except (EOFError, OSError):
            code = self._process.wait()
            raise EngineError(
                f"the process that loads the model ended with code {code} before it was done"
            ) from None
        if isinstance(answer, NotStarted):
            raise answer.error

    def start_replica(self, replica: int) -> Connection | None:
        """Starts a replica and returns the connection to it; None if the launcher is gone."""
        ours, theirs = multiprocessing.Pipe()
        with theirs:
            try:
                self._control.send(Start(replica))
                send_handle(self._control, theirs.fileno(), self._process.pid)
            except OSError:
                ours.close()
                return None
        return ours

    def reap(self, replica: int) -> str:
        """Waits for the end of a replica that has closed its connection, and says how it ended."""
        try:
            self._control.send(Reap(replica))
            answer: Reaped = self._control.recv()
        except (EOFError, OSError):
            return "died with the process that starts replicas"
        return answer.reason

    def close(self) -> None:
        """Ends the launcher and every replica."""
        self._control.close()
        try:
            self._process.wait(_END_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
