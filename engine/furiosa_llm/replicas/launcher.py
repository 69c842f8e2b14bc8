"""The process that loads the model once and forks the replicas, which share its memory.

It runs nothing itself and starts no thread, so that forking it is safe. Restarting a replica
costs no loading. It ends, and ends the replicas, when the parent's end of its connection closes.
"""

from __future__ import annotations

import contextlib
import gc
import os
import signal
import sys
import tempfile
from collections.abc import Callable
from functools import partial
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from multiprocessing.reduction import recv_handle
from typing import NoReturn

import torch

from furiosa_llm.errors import FuriosaLLMError
from furiosa_llm.replicas.messages import Launch, Launched, NotStarted, Reap, Reaped, Start
from furiosa_llm.replicas.parent_watch import ending_with
from furiosa_llm.replicas.template import ReplicaTemplate
from furiosa_llm.replicas.worker import run_replica


def serve(control: Connection, launch: Launch) -> None:
    """Serves the parent until it is gone."""
    torch.set_num_threads(1)  # no thread may exist when it forks
    try:
        with ending_with(control):
            template = ReplicaTemplate.load(launch)
    except FuriosaLLMError as error:
        control.send(NotStarted(error))
        return
    gc.freeze()  # what is shared is not written to by collections
    with contextlib.suppress(OSError):  # the parent is gone: that is noticed below
        control.send(Launched())
    with contextlib.ExitStack() as stack:
        folder = None
        if template.launch.placement.num_processes_of_replica > 1:
            folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="furiosa-llm-"))
        launcher = _Launcher(control, template, folder)
        with contextlib.suppress(EOFError, OSError):  # the parent is gone
            launcher.serve()
        launcher.end()


class _Launcher:
    """Forks replicas and waits for their ends."""

    def __init__(self, control: Connection, template: ReplicaTemplate, folder: str | None) -> None:
        """Takes the folder in which the processes of a replica meet, if there are several."""
        self._control = control
        self._template = template
        self._folder = folder
        self._num_starts = 0
        self._pids: dict[int, list[int]] = {}  # by replica, the leader first

    def serve(self) -> NoReturn:
        """Does what the parent asks for.

        Raises:
            EOFError: The parent is gone.
        """
        while True:
            match self._control.recv():
                case Start(replica):
                    with Connection(recv_handle(self._control)) as connection:
                        self._start(replica, connection)
                case Reap(replica):
                    leader, *others = self._pids.pop(replica)
                    _, status = os.waitpid(leader, 0)
                    _end(others)
                    self._control.send(Reaped(_reason(status)))

    def end(self) -> None:
        """Ends every replica."""
        for pids in self._pids.values():
            _end(pids)

    def _start(self, replica: int, connection: Connection) -> None:
        """Forks the processes of a replica: those that follow, and the one that leads."""
        self._num_starts += 1
        rendezvous = f"{self._folder}/{self._num_starts}"
        pipes = [Pipe() for _ in range(1, self._template.launch.placement.num_processes_of_replica)]
        leader_ends = [leader_end for leader_end, _ in pipes]
        own_ends = [own_end for _, own_end in pipes]

        def lead() -> int:
            _close(own_ends)
            make_core = partial(self._template.lead, replica, leader_ends, rendezvous)
            return run_replica(connection, make_core)

        def follow(rank: int) -> int:
            own_end = own_ends.pop(rank - 1)
            _close([connection, *own_ends, *leader_ends])
            # The leader meets the same errors, and tells them.
            with contextlib.suppress(FuriosaLLMError, RuntimeError):
                self._template.follow(replica, rank, own_end, rendezvous)
            return 1

        leader = self._fork(lead)
        followers = [self._fork(partial(follow, rank)) for rank in range(1, len(pipes) + 1)]
        self._pids[replica] = [leader, *followers]
        _close([*leader_ends, *own_ends])

    def _fork(self, run: Callable[[], int]) -> int:
        """Runs a function in a new process, and returns the process's number."""
        sys.stderr.flush()
        pid = os.fork()
        if pid:
            return pid
        code = 1
        try:
            self._control.close()
            code = run()
        finally:
            os._exit(code)


def _close(connections: list[Connection]) -> None:
    for connection in connections:
        connection.close()


def _end(pids: list[int]) -> None:
    for pid in pids:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


def _reason(status: int) -> str:
    code = os.waitstatus_to_exitcode(status)
    return f"died of signal {-code}" if code < 0 else f"exited with code {code}"
