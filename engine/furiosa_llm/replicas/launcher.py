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
from dataclasses import dataclass
from multiprocessing.connection import Connection
from multiprocessing.reduction import recv_handle
from typing import NoReturn

import torch

from furiosa_llm.engine_core import EngineCore
from furiosa_llm.errors import FuriosaLLMError
from furiosa_llm.execution.prepared_model import PreparedModel, prepare_model
from furiosa_llm.execution.step_queue import queue_for
from furiosa_llm.replicas.messages import Launch, Launched, NotLaunched, Reap, Reaped, Start
from furiosa_llm.replicas.worker import run_replica
from furiosa_llm.tokenization import Tokenizer


def main(control: Connection) -> None:
    """Serves the parent until it is gone."""
    torch.set_num_threads(1)  # no thread may exist when it forks
    launch: Launch = control.recv()
    try:
        template = _Template.load(launch)
    except FuriosaLLMError as error:
        control.send(NotLaunched(error))
        return
    gc.freeze()  # what is shared is not written to by collections
    control.send(Launched(template.model.limits))
    launcher = _Launcher(control, template)
    with contextlib.suppress(EOFError, OSError):  # the parent is gone
        launcher.serve()
    launcher.end()


@dataclass(frozen=True, slots=True, kw_only=True)
class _Template:
    """What all replicas have in common."""

    launch: Launch
    model: PreparedModel
    tokenizer: Tokenizer

    @classmethod
    def load(cls, launch: Launch) -> _Template:
        args = launch.args
        return cls(
            launch=launch,
            model=prepare_model(args, num_replicas=launch.placement.num_replicas),
            tokenizer=Tokenizer.from_engine_args(args),
        )

    def make_core(self, replica: int) -> EngineCore:
        """Builds an engine core on the replica's cores."""
        place = self.launch.placement.replicas[replica][0][0]
        if place.cores:
            os.sched_setaffinity(0, place.cores)
        limits = self.model.limits
        runner = self.model.make_runner(place.num_threads)
        return EngineCore(
            executor=queue_for(runner, limits.scheduler_config.npu_queue_limit),
            tokenizer=self.tokenizer,
            limits=limits,
            seed=self.launch.args.seed,
            replica=replica,
        )


class _Launcher:
    """Forks replicas and waits for their ends."""

    def __init__(self, control: Connection, template: _Template) -> None:
        self._control = control
        self._template = template
        self._pids: dict[int, int] = {}  # by replica

    def serve(self) -> NoReturn:
        """Does what the parent asks for.

        Raises:
            EOFError: The parent is gone.
        """
        while True:
            match self._control.recv():
                case Start(replica):
                    self._start(replica, Connection(recv_handle(self._control)))
                case Reap(replica):
                    _, status = os.waitpid(self._pids.pop(replica), 0)
                    self._control.send(Reaped(_reason(status)))

    def end(self) -> None:
        """Ends every replica."""
        for pid in self._pids.values():
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)

    def _start(self, replica: int, connection: Connection) -> None:
        sys.stderr.flush()
        pid = os.fork()
        if pid:
            self._pids[replica] = pid
            connection.close()
            return
        code = 1
        try:
            self._control.close()
            code = run_replica(connection, lambda: self._template.make_core(replica))
        finally:
            os._exit(code)


def _reason(status: int) -> str:
    code = os.waitstatus_to_exitcode(status)
    return f"died of signal {-code}" if code < 0 else f"exited with code {code}"
