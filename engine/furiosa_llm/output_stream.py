"""Outputs of one request on their way from an engine's thread to the coroutine that reads them."""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import Iterable

from furiosa_llm.errors import EngineError
from furiosa_llm.outputs import RequestOutput


class OutputStream:
    """What a request has to tell, read by one coroutine.

    `put` and `end` belong to the thread of the event loop; `send` and `send_end` bring there what
    another thread has. A reader that is slow does not hold the engine up: unless `keeps_all`, a
    newer output takes the place of one that was not read, since it tells the same and more.
    Otherwise every output is kept, at most one for each token of the answer.

    Attributes:
        loop: The event loop of the reader.
        is_ended: Whether nothing more comes than what was taken in.
    """

    def __init__(self, *, keeps_all: bool) -> None:
        """Begins a stream of the running event loop."""
        self.loop = asyncio.get_running_loop()
        self._keeps_all = keeps_all
        self._unread: deque[RequestOutput] = deque()
        self._changed = asyncio.Event()
        self.is_ended = False
        self._error: EngineError | None = None

    def put(self, output: RequestOutput) -> None:
        """Takes an output in."""
        if not self._keeps_all:
            self._unread.clear()
        self._unread.append(output)
        self._changed.set()

    def end(self, error: EngineError | None) -> None:
        """Lets the reader come to an end, or to an error, once it has read the rest."""
        self.is_ended = True
        self._error = error
        self._changed.set()

    def __aiter__(self) -> OutputStream:
        return self

    async def __anext__(self) -> RequestOutput:
        while not self._unread:
            if self._error is not None:
                raise EngineError(str(self._error)) from self._error
            if self.is_ended:
                raise StopAsyncIteration
            self._changed.clear()
            await self._changed.wait()
        output = self._unread.popleft()
        self.is_ended = self.is_ended or output.finished
        return output


def send(outputs: Iterable[tuple[OutputStream, RequestOutput]]) -> None:
    """Brings outputs to the threads of their streams, each event loop being woken once."""
    by_loop: dict[asyncio.AbstractEventLoop, list[tuple[OutputStream, RequestOutput]]] = {}
    for stream, output in outputs:
        by_loop.setdefault(stream.loop, []).append((stream, output))
    for loop, batch in by_loop.items():
        with contextlib.suppress(RuntimeError):  # the loop is closed: no one reads any more
            loop.call_soon_threadsafe(_put_all, batch)


def send_end(stream: OutputStream, error: EngineError | None = None) -> None:
    """Ends a stream from another thread."""
    with contextlib.suppress(RuntimeError):  # as above
        stream.loop.call_soon_threadsafe(stream.end, error)


def _put_all(batch: Iterable[tuple[OutputStream, RequestOutput]]) -> None:
    for stream, output in batch:
        stream.put(output)
