"""Data-parallel replicas behind the interface of one engine core."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Iterable
from multiprocessing.connection import Connection, wait

from furiosa_llm.engine_limits import EngineLimits
from furiosa_llm.errors import EngineError, PromptFailedError
from furiosa_llm.outputs import RequestMetrics, RequestOutput, StepStats
from furiosa_llm.replicas.dispatcher import Dispatcher, low_water_tokens, most_work
from furiosa_llm.replicas.growing_outputs import GrowingOutputs
from furiosa_llm.replicas.launcher_process import LauncherProcess
from furiosa_llm.replicas.messages import Abort, Add, Failed, NotStarted, Report, Started
from furiosa_llm.replicas.prompt_names import PromptNames
from furiosa_llm.request import TokenizedPrompt
from furiosa_llm.scheduling.admission import check_fits
from furiosa_llm.scheduling.ordering import FifoQueue, OfflineQueue

MAX_FRUITLESS_DEATHS = 5

_logger = logging.getLogger(__name__)


class ReplicaPool:
    """Replicas in processes of their own, which it starts, supplies, restarts, and ends.

    A replica that dies is started again, unless it is its fifth death without an answer in between.
    So replicas may die any number of times while the work goes on, of prompts for example, and none
    is started again and again for nothing.

    The replicas are children of a launcher, which ends with this process, and so do they, however
    it ends.

    Attributes:
        limits: Of the replica that can hold the least.
        last_steps: The steps that the replicas reported in the last call of `step`.
    """

    def __init__(
        self,
        launcher: LauncherProcess,
        num_replicas: int,
        *,
        weigh: Callable[[TokenizedPrompt], int] = most_work,
    ) -> None:
        """Waits until the launcher has loaded the model, and starts the replicas.

        Args:
            launcher: It loads the model.
            num_replicas: At least one.
            weigh: The work of a prompt, by which replicas are given prompts.

        Raises:
            ModelLoadError: The model or its tokenizer cannot be loaded or is not supported.
            ConfigError: An option does not go with the model or with this machine.
            EngineError: The process that loads the model died.
        """
        self.last_steps: list[StepStats] = []
        self._launcher = launcher
        launcher.wait_until_ready()
        self._connections: dict[int, Connection] = {}  # by replica, of those that are alive
        for replica in range(num_replicas):
            self._connections[replica] = _started(launcher, replica)
        limits = [_limits(launcher, *item) for item in self._connections.items()]
        self.limits = min(limits, key=lambda each: each.cache_config.num_blocks)
        config, cache = self.limits.scheduler_config, self.limits.cache_config
        self._dispatcher = Dispatcher(
            num_replicas,
            low_water_tokens=low_water_tokens(config.max_num_batched_tokens),
            queue=OfflineQueue() if config.is_offline else FifoQueue(),
            weigh=weigh,
            prefix_block_size=cache.block_size if cache.enable_prefix_caching else None,
        )
        self._names = PromptNames()
        self._growing = GrowingOutputs()
        self._failures: dict[int, str] = {}  # what a replica said before it ended
        self._fruitless_deaths = Counter[int]()  # of replicas, since they last answered a prompt
        self._given_up: list[RequestOutput] = []
        self._end: EngineError | None = None

    @property
    def num_unfinished(self) -> int:
        """Prompts whose answers are not complete."""
        return len(self._names)

    def __contains__(self, request_id: str) -> bool:
        """Tells whether a prompt of this name is unfinished."""
        return request_id in self._names

    def add(self, prompt: TokenizedPrompt) -> None:
        """Takes a prompt in.

        Raises:
            PromptTooLongError: Prompt and answer exceed the context.
            NeverFitsError: They exceed the whole KV cache of a replica.
        """
        check_fits(
            num_prompt_tokens=prompt.num_prompt_tokens,
            max_tokens=prompt.max_tokens,
            max_model_len=self.limits.model_info.max_model_len,
            cache_config=self.limits.cache_config,
        )
        self._dispatcher.add(self._growing.add(self._names.add(prompt)))

    def waiting(self) -> list[str]:
        """Returns the prompts that no replica has been given."""
        return self._names.given(self._dispatcher.queued)

    def abort(self, request_ids: Iterable[str]) -> None:
        """Gives prompts up. No output comes for them any more."""
        names = self._names.remove(request_ids)
        self._growing.remove(names)
        self._given_up = [o for o in self._given_up if o.request_id not in names]
        for replica, held in self._dispatcher.abort(names).items():
            self._send(replica, Abort(held))

    def step(self) -> list[RequestOutput]:
        """Supplies the replicas and waits until one of them has something to report.

        Raises:
            EngineError: Every replica has died; what they finished has been handed out before.
        """
        self.last_steps = []
        self._supply()
        if self._end is not None and not self._given_up:
            raise self._end
        outputs: list[RequestOutput] = []
        while not outputs and not self.last_steps and not self._given_up and self._end is None:
            ready = wait(list(self._connections.values()))
            for replica, connection in list(self._connections.items()):
                if connection in ready:
                    outputs += self._receive(replica, connection)
            self._supply()
        outputs += self._given_up
        self._given_up = []
        return self._names.outputs(outputs)

    def close(self) -> None:
        """Ends every process. It may be called again."""
        for connection in self._connections.values():
            connection.close()
        self._connections.clear()
        self._launcher.close()

    def _supply(self) -> None:
        """Hands prompts to the replicas that pull."""
        batches: dict[int, list[TokenizedPrompt]] = {}
        for replica, prompt in self._dispatcher.assignments():
            batches.setdefault(replica, []).append(prompt)
        for replica, prompts in batches.items():
            self._send(replica, Add(tuple(prompts)))

    def _send(self, replica: int, message: Add | Abort) -> None:
        try:
            self._connections[replica].send(message)
        except OSError:
            # It has died: `wait` will say so, and its prompts are taken back then.
            _logger.debug("replica %d took no message", replica)

    def _receive(self, replica: int, connection: Connection) -> list[RequestOutput]:
        try:
            message = connection.recv()
        except (EOFError, OSError):
            self._bury(replica)
            return []
        match message:
            case Report():
                return self._book(replica, message)
            case Failed(reason):
                self._failures[replica] = f"failed: {reason}"
            case NotStarted(error):
                self._failures[replica] = f"could not be started again: {error}"
        return []

    def _book(self, replica: int, report: Report) -> list[RequestOutput]:
        self.last_steps += report.steps
        self._dispatcher.reported(
            replica,
            num_received=report.num_received,
            num_waiting_tokens=report.num_waiting_tokens,
        )
        outputs = []
        for output in report.outputs:
            prompt = self._dispatcher.prompt(replica, output.request_id)
            if prompt is None:
                continue  # it was aborted meanwhile
            outputs.append(self._growing.output(prompt, output))
            if output.finished:
                self._dispatcher.finished(replica, output.request_id)
                del self._fruitless_deaths[replica]
        return outputs

    def _bury(self, replica: int) -> None:
        """Takes a dead replica's prompts back, and starts it again unless that is in vain."""
        self._connections.pop(replica).close()
        reason = self._launcher.reap(replica)
        reason = self._failures.pop(replica, reason)
        given_up = self._dispatcher.died(replica)
        for prompt in given_up:
            self._growing.remove([prompt.request_id])
            self._given_up.append(_failed(prompt, replica, reason))
        connection = None
        self._fruitless_deaths[replica] += not given_up  # else it is known what it died of
        if self._fruitless_deaths[replica] < MAX_FRUITLESS_DEATHS:
            connection = self._launcher.start_replica(replica)
        if connection is not None:
            _logger.warning("replica %d is started again: it %s", replica, reason)
            self._connections[replica] = connection
            self._dispatcher.restarted(replica)
            return
        _logger.warning("replica %d is not started again: it %s", replica, reason)
        if not self._connections:
            self._end = EngineError(f"every replica has died; the last one {reason}")


def _started(launcher: LauncherProcess, replica: int) -> Connection:
    connection = launcher.start_replica(replica)
    if connection is None:
        raise EngineError("the process that starts replicas has died")
    return connection


def _limits(launcher: LauncherProcess, replica: int, connection: Connection) -> EngineLimits:
    """Waits until a new replica is ready, and returns what it was built for."""
    try:
        message: Started | NotStarted | Failed = connection.recv()
    except (EOFError, OSError):
        raise EngineError(
            f"replica {replica} {launcher.reap(replica)} while it was started"
        ) from None
    match message:
        case Started(limits):
            return limits
        case NotStarted(error):
            raise error
        case Failed(reason):
            raise EngineError(f"replica {replica} could not be started: {reason}")


def _failed(prompt: TokenizedPrompt, replica: int, reason: str) -> RequestOutput:
    return RequestOutput(
        request_id=prompt.request_id,
        prompt=prompt.text,
        prompt_token_ids=list(prompt.prompt_token_ids),
        outputs=[],
        finished=True,
        num_cached_tokens=0,
        num_output_tokens=0,
        metrics=RequestMetrics(),
        replica=replica,
        error=PromptFailedError(
            f"replicas died twice or more while they answered this prompt; the last one {reason}"
        ),
    )
