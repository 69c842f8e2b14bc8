"""Processes that run one replica together, each fed with the same steps."""

from __future__ import annotations

import multiprocessing
from collections.abc import Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from types import TracebackType
from typing import TypeVar

import torch

from furiosa_llm.config import EngineArgs
from furiosa_llm.engine_core import EngineCore
from furiosa_llm.engine_limits import EngineLimits
from furiosa_llm.errors import FuriosaLLMError
from furiosa_llm.execution.prepared_rank import prepare_rank
from furiosa_llm.execution.rank_group import RankPlace, join
from furiosa_llm.execution.step_queue import FinishedStep, SerialExecutor, StepRunner
from furiosa_llm.llm_engine import LLMEngine
from furiosa_llm.replicas.placement import Placement, ProcessPlace
from furiosa_llm.scheduler_output import SchedulerOutput, StepResult
from furiosa_llm.tokenization import Tokenizer

MAX_SECONDS = 60.0  # for anything that a rank is asked
Reply = TypeVar("Reply")


class RankProcesses:
    """Starts `pp * tp` processes, and is the executor of an engine on them."""

    def __init__(self, folder: Path, *, pp: int, tp: int) -> None:
        # The modules are imported once, by a process that the others are forked from.
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(["furiosa_llm.execution.prepared_rank", "transformers"])
        self.num_ranks = pp * tp
        self.processes = []
        self._first_of_last_stage = (pp - 1) * tp
        self._pipes: list[Connection] = []
        for rank in range(pp * tp):
            place = RankPlace(
                pipeline_rank=rank // tp,
                tensor_rank=rank % tp,
                pipeline_parallel_size=pp,
                tensor_parallel_size=tp,
                rendezvous=str(folder / "rendezvous"),
                timeout_seconds=MAX_SECONDS,
            )
            ours, theirs = context.Pipe()
            process = context.Process(target=_serve, args=(place, theirs), daemon=True)
            process.start()
            theirs.close()
            self._pipes.append(ours)
            self.processes.append(process)

    def __enter__(self) -> RankProcesses:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        for pipe in self._pipes:
            pipe.close()
        for process in self.processes:
            process.join(MAX_SECONDS)
            process.kill()

    def engine(self, args: EngineArgs) -> LLMEngine:
        """Loads a model on all ranks, and returns an engine that runs there."""
        limits = self._ask(range(self.num_ranks), args, EngineLimits)
        assert all(other == limits[0] for other in limits)
        tokenizer = Tokenizer(args.model)
        core = EngineCore(
            executor=SerialExecutor(self), tokenizer=tokenizer, limits=limits[0], seed=args.seed
        )
        place = ProcessPlace(device="cpu")
        return LLMEngine(
            core=core, tokenizer=tokenizer, placement=Placement(replicas=(((place,),),))
        )

    def launch(self, step: SchedulerOutput) -> FinishedStep:
        """Runs a step on all ranks."""
        results = self.run_on(range(self.num_ranks), step)
        last = results[self._first_of_last_stage :]
        assert all(not result.token_ids for result in results[: self._first_of_last_stage])
        assert all(result.token_ids == last[0].token_ids for result in last)
        return FinishedStep(last[0])

    def run_on(self, ranks: Sequence[int], step: SchedulerOutput) -> list[StepResult]:
        """Runs a step on some of the ranks."""
        return self._ask(ranks, step, StepResult)

    def _ask(
        self, ranks: Sequence[int], request: EngineArgs | SchedulerOutput, kind: type[Reply]
    ) -> list[Reply]:
        for rank in ranks:
            self._pipes[rank].send(request)
        replies = []
        for rank in ranks:
            assert self._pipes[rank].poll(MAX_SECONDS), f"rank {rank} does not answer"
            replies.append(self._pipes[rank].recv())
        for reply in replies:
            if isinstance(reply, BaseException):
                raise reply
        assert all(isinstance(reply, kind) for reply in replies)
        return replies


def _serve(place: RankPlace, pipe: Connection) -> None:
    torch.set_num_threads(1)
    group = join(place)
    runner: StepRunner | None = None
    try:
        while True:
            request = pipe.recv()
            if isinstance(request, SchedulerOutput):
                assert runner is not None
                pipe.send(runner.launch(request).result())
            else:
                prepared = prepare_rank(request, group)
                runner = prepared.make_runner(num_threads=1)
                pipe.send(prepared.limits)
    except EOFError:
        group.leave()
    except (RuntimeError, FuriosaLLMError) as error:
        pipe.send(error)
