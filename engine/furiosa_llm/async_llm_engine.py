"""The engine for coroutines: many requests that come and go, each read as it is answered."""

from __future__ import annotations

import asyncio
import atexit
import contextlib
import queue
import threading
from collections.abc import AsyncGenerator, Callable, Iterable, Sequence
from concurrent.futures import Future

from furiosa_llm.config import EngineArgs
from furiosa_llm.errors import EngineError
from furiosa_llm.llm_engine import LLMEngine
from furiosa_llm.output_stream import OutputStream, send, send_end
from furiosa_llm.outputs import RequestOutput
from furiosa_llm.prompt_intake import Prompt
from furiosa_llm.sampling_params import RequestOutputKind, SamplingParams

_WAS_SHUT_DOWN = "the engine was shut down; make a new one"


class AsyncLLMEngine:
    """Answers prompts for coroutines, of one event loop or several.

    A thread of its own runs the engine's steps and sleeps while there is nothing to do. Whatever
    else is asked of the engine is done by that thread, too, between two steps.

    Example:
        args = EngineArgs(model="samples/tiny-llama")
        async with AsyncLLMEngine.from_engine_args(args) as engine:
            async for output in engine.generate("Add 67 and 4.", SamplingParams(), "a name"):
                print(output.outputs[0].text)
    """

    def __init__(self, engine: LLMEngine) -> None:
        """Starts the thread; from now on nothing else may use `engine`."""
        self._engine = engine
        self._streams: dict[str, OutputStream] = {}  # belongs to the thread
        self._tasks: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._failure: EngineError | None = None  # why no task is taken in; guarded by the lock
        self._thread = threading.Thread(target=self._run, name="llm-engine", daemon=True)
        self._thread.start()
        # A thread that computes while the interpreter ends would crash it.
        atexit.register(self.shutdown)

    @classmethod
    def from_engine_args(cls, args: EngineArgs) -> AsyncLLMEngine:
        """Loads the model and starts the engine; it returns when that is done.

        Raises:
            ModelLoadError: The model or its tokenizer cannot be loaded or is not supported.
            ConfigError: An option does not go with the model or with this machine.
        """
        return cls(LLMEngine.from_engine_args(args))

    async def __aenter__(self) -> AsyncLLMEngine:
        return self

    async def __aexit__(self, *_: object) -> None:
        await asyncio.to_thread(self.shutdown)

    async def generate(
        self, prompt: Prompt, sampling_params: SamplingParams, request_id: str
    ) -> AsyncGenerator[RequestOutput, None]:
        """Answers a prompt, which is handed to the engine when the first output is asked for.

        A reader that is slow misses outputs that tell only the beginning of a later one
        (`RequestOutputKind.CUMULATIVE`), and none of those that tell what is new (`DELTA`).
        Leaving the iteration, or cancelling it, gives the request up.

        Args:
            prompt: As for `LLMEngine.add_request`.
            sampling_params: How to choose the tokens, when to stop, and what the outputs tell.
            request_id: A name that no unfinished request has.

        Raises:
            ValueError: The id is no string or is in use; or, as a RequestError, the prompt
                cannot be answered. Other requests are not touched.
            EngineError: The engine has broken or was shut down.

        Yields:
            The answer so far, or what is new of it, until it is finished; nothing more once the
            request is aborted.
        """
        stream = OutputStream(keeps_all=sampling_params.output_kind is RequestOutputKind.DELTA)

        def add() -> None:
            self._engine.add_request(request_id, prompt, sampling_params)
            self._streams[request_id] = stream

        try:
            await asyncio.wrap_future(self._hand_over(add))
            async for output in stream:
                yield output
        finally:
            if not stream.is_ended:
                with contextlib.suppress(EngineError):  # the request has ended with the engine
                    self._hand_over(lambda: self._drop(request_id, stream))

    async def abort(self, request_id: str | Iterable[str]) -> None:
        """Gives requests up and ends their iterations; unknown ids are ignored.

        Raises:
            EngineError: The engine has broken or was shut down.
        """
        names = [request_id] if isinstance(request_id, str) else list(request_id)
        await asyncio.wrap_future(self._hand_over(lambda: self._abort(names)))

    def shutdown(self) -> None:
        """Ends the engine once its step is done. Requests that are open fail with an EngineError.

        It waits, so that a coroutine had better leave it to `async with`. It may be called again.
        """
        atexit.unregister(self.shutdown)
        self._fail(EngineError(_WAS_SHUT_DOWN))
        self._thread.join()
        self._engine.shutdown()

    def _hand_over(self, task: Callable[[], None]) -> Future[None]:
        """Has the engine's thread do something; the future tells when it is done or failed."""
        future: Future[None] = Future()
        with self._lock:
            if self._failure is not None:
                raise EngineError(str(self._failure)) from self._failure
            self._tasks.put(lambda: self._do(task, future))
        return future

    def _fail(self, error: EngineError) -> None:
        """Takes nothing in any more, and wakes the thread so that it ends."""
        with self._lock:
            self._failure = self._failure or error
            self._tasks.put(lambda: None)

    # What follows runs in the engine's thread.

    def _run(self) -> None:
        try:
            while self._failure is None:
                self._do_tasks(wait=not self._engine.has_unfinished_requests())
                self._deliver(self._engine.step())
        except EngineError as error:
            self._fail(error)
        except BaseException as error:  # noqa: BLE001 - raised wherever an output is awaited
            failure = EngineError(f"the engine's thread ended: {error!r}")
            failure.__cause__ = error
            self._fail(failure)
        self._do_tasks(wait=False)
        for stream in self._streams.values():
            send_end(stream, self._failure)

    def _do_tasks(self, *, wait: bool) -> None:
        with contextlib.suppress(queue.Empty):
            self._tasks.get(block=wait)()
            while True:
                self._tasks.get_nowait()()

    def _do(self, task: Callable[[], None], future: Future[None]) -> None:
        if not future.set_running_or_notify_cancel():
            return
        try:
            if self._failure is not None:
                raise EngineError(str(self._failure)) from self._failure
            task()
        except Exception as error:  # noqa: BLE001 - raised where the future is awaited
            future.set_exception(error)
        else:
            future.set_result(None)

    def _deliver(self, outputs: Sequence[RequestOutput]) -> None:
        send((self._streams[output.request_id], output) for output in outputs)
        for output in outputs:
            if output.finished:
                del self._streams[output.request_id]

    def _abort(self, request_ids: Sequence[str]) -> None:
        self._engine.abort_request(request_ids)
        for request_id in request_ids:
            if request_id in self._streams:
                send_end(self._streams.pop(request_id))

    def _drop(self, request_id: str, stream: OutputStream) -> None:
        """Aborts a request, not another one that goes by its name meanwhile."""
        if self._streams.get(request_id) is stream:
            self._abort([request_id])
