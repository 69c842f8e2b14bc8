"""What a replica's process does: it answers what it is sent, until its parent is gone."""

from __future__ import annotations

import dataclasses
import os
import queue
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection

from furiosa_llm.engine_core import EngineCore
from furiosa_llm.errors import EngineError, FuriosaLLMError
from furiosa_llm.outputs import RequestOutput, StepStats
from furiosa_llm.replicas.dispatcher import low_water_tokens
from furiosa_llm.replicas.messages import Abort, Add, Failed, NotStarted, Report, Started

REPORT_SECONDS = 0.05  # between reports of nothing but steps


def run_replica(connection: Connection, make_core: Callable[[], EngineCore]) -> int:
    """Answers prompts until the engine breaks. Returns the process's exit code.

    The process ends by itself, in the middle of a step, when the parent's end of the connection
    is closed: so it does whatever becomes of the parent.
    """
    inbox = _Inbox(connection)
    try:
        try:
            core = make_core()
        except FuriosaLLMError as error:
            _send(connection, NotStarted(error))
            return 1
        _send(connection, Started(core.limits))
        _Replica(core, connection, inbox).run()
    except EngineError as error:
        _send(connection, Failed(str(error)))
    except Exception as error:  # noqa: BLE001 - the edge of the process: the parent must know
        traceback.print_exc()
        _send(connection, Failed(f"{type(error).__name__}: {error}"))
    return 1


def _send(connection: Connection, message: Started | NotStarted | Report | Failed) -> None:
    try:
        connection.send(message)
    except OSError:
        os._exit(0)  # the parent is gone


class _Inbox:
    """Takes messages from the connection as they come, in a thread.

    So the parent can always send, also while this process waits to send to it.
    """

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._messages: queue.SimpleQueue[Add | Abort] = queue.SimpleQueue()
        threading.Thread(target=self._receive, name="inbox", daemon=True).start()

    def take(self, *, wait: bool) -> Iterator[Add | Abort]:
        """Yields the messages that are there; with `wait`, at least one."""
        if wait:
            yield self._messages.get()
        while not self._messages.empty():
            yield self._messages.get()

    def _receive(self) -> None:
        while True:
            try:
                self._messages.put(self._connection.recv())
            except (EOFError, OSError):
                os._exit(0)  # the parent is gone


class _Replica:
    """An engine core and what it has to report."""

    def __init__(self, core: EngineCore, connection: Connection, inbox: _Inbox) -> None:
        self._core = core
        self._connection = connection
        self._inbox = inbox
        config = core.limits.scheduler_config
        self._low_water_tokens = low_water_tokens(config.max_num_batched_tokens)
        self._outputs: list[RequestOutput] = []
        self._steps: list[StepStats] = []
        self._num_received = 0
        self._last_report = time.monotonic()

    def run(self) -> None:
        """Never returns."""
        while True:
            if not self._core.num_unfinished:
                self._report()
            for message in self._inbox.take(wait=not self._core.num_unfinished):
                self._handle(message)
            self._outputs += map(_without_prompt, self._core.step())
            self._steps += self._core.last_steps
            if self._is_report_due():
                self._report()

    def _handle(self, message: Add | Abort) -> None:
        match message:
            case Add(prompts):
                for prompt in prompts:
                    self._core.add(prompt)
                self._num_received += len(prompts)
            case Abort(request_ids):
                self._core.abort(request_ids)

    def _is_report_due(self) -> bool:
        return (
            bool(self._outputs)
            or self._core.num_waiting_prompt_tokens < self._low_water_tokens
            or time.monotonic() - self._last_report > REPORT_SECONDS
        )

    def _report(self) -> None:
        self._last_report = time.monotonic()
        report = Report(
            outputs=tuple(self._outputs),
            steps=tuple(self._steps),
            num_received=self._num_received,
            num_waiting_tokens=self._core.num_waiting_prompt_tokens,
        )
        _send(self._connection, report)
        self._outputs, self._steps = [], []


def _without_prompt(output: RequestOutput) -> RequestOutput:
    return dataclasses.replace(output, prompt=None, prompt_token_ids=[])
