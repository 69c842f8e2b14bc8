"""One replica on several processes: the leader has the scheduler, the others follow its steps."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Sequence
from multiprocessing.connection import Connection

from furiosa_llm.errors import EngineError
from furiosa_llm.execution.step_queue import StepRunner, ThreadedExecutor
from furiosa_llm.scheduler_output import SchedulerOutput, StepResult


class RankExecutor:
    """Runs each step on every rank of a replica. The leader is the first rank of the first stage.

    The stages work on different steps at the same time; results come in the order of the steps.
    """

    def __init__(
        self,
        runner: StepRunner,
        followers: Sequence[Connection],
        *,
        num_stages: int,
        num_ranks: int,
    ) -> None:
        """Joins the leader's part with the others.

        Args:
            runner: Of the leader.
            followers: Connections to the other ranks, by rank from 1.
            num_stages: Pipeline stages.
            num_ranks: Ranks of each stage.
        """
        self._own = ThreadedExecutor(runner)
        self._followers = followers
        self._later_stages = [followers[stage * num_ranks - 1] for stage in range(1, num_stages)]

    def submit(self, step: SchedulerOutput) -> None:
        """Sends a step to every rank."""
        with contextlib.suppress(OSError):  # a rank has died: its neighbours fail, and `collect`
            for follower in self._followers:
                follower.send(step)
        self._own.submit(step)

    def collect(self) -> StepResult:
        """Waits for the oldest step.

        Raises:
            EngineError: A rank failed or died, so that the others wait for it in vain.
        """
        try:
            results = [self._own.collect()]
        except Exception as error:
            raise EngineError(str(error) or type(error).__name__) from error
        for stage in self._later_stages:
            try:
                results.append(stage.recv())
            except (EOFError, OSError):
                raise EngineError("a process of another pipeline stage has died") from None
        return dataclasses.replace(
            results[-1], model_seconds=sum(result.model_seconds for result in results)
        )

    def close(self) -> None:
        """Ends the leader's thread and lets the followers end."""
        for follower in self._followers:
            follower.close()
        self._own.close()


def follow(leader: Connection, runner: StepRunner, *, reports: bool) -> None:
    """Runs the leader's steps until it is gone.

    Args:
        leader: The connection to it.
        runner: Of this rank.
        reports: Whether this rank sends the results of its stage.
    """
    while True:
        try:
            step: SchedulerOutput = leader.recv()
        except (EOFError, OSError):
            return
        result = runner.launch(step).result()
        if reports:
            leader.send(result)
