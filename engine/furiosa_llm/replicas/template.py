"""What the processes of all replicas have in common, and what each makes of it."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection

from furiosa_llm.engine_core import EngineCore
from furiosa_llm.execution.prepared_model import PreparedModel, prepare_model
from furiosa_llm.execution.prepared_rank import prepare_rank
from furiosa_llm.execution.rank_group import RankPlace, join
from furiosa_llm.execution.step_queue import queue_for
from furiosa_llm.replicas.messages import Launch
from furiosa_llm.replicas.placement import ProcessPlace
from furiosa_llm.replicas.ranks import RankExecutor, follow
from furiosa_llm.steps_in_flight import StepExecutor
from furiosa_llm.tokenization import Tokenizer


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplicaTemplate:
    """A replica before it is forked.

    Attributes:
        launch: What every replica runs.
        tokenizer: Of the model.
        model: The whole model, where processes that are forked from here can share it: on a CPU,
            with one process for each replica. None where each process loads its own part.
    """

    launch: Launch
    tokenizer: Tokenizer
    model: PreparedModel | None

    @classmethod
    def load(cls, launch: Launch) -> ReplicaTemplate:
        """Loads what can be loaded before replicas are forked.

        Raises:
            ModelLoadError: The model or its tokenizer cannot be loaded or is not supported.
            ConfigError: An option does not go with the model or with this machine.
        """
        args, placement = launch.args, launch.placement
        is_shared = placement.num_processes_of_replica == 1 and not placement.is_on_gpus
        model = prepare_model(args, num_replicas=placement.num_replicas) if is_shared else None
        return cls(launch=launch, tokenizer=Tokenizer.from_engine_args(args), model=model)

    def lead(self, replica: int, followers: Sequence[Connection], rendezvous: str) -> EngineCore:
        """Makes the engine core of a replica, in its first process.

        Raises:
            ModelLoadError: The model cannot be loaded or is not supported.
            ConfigError: An option does not go with the model or with this machine.
            RuntimeError: The replica's processes did not meet.
        """
        place = self._settle(replica, 0)
        model = self.model or self._load(replica, 0, rendezvous)
        runner = model.make_runner(place.num_threads)
        executor: StepExecutor
        placement = self.launch.placement
        if followers:
            executor = RankExecutor(
                runner,
                followers,
                num_stages=placement.num_stages,
                num_ranks=placement.num_ranks,
            )
        else:
            executor = queue_for(
                runner,
                model.limits.scheduler_config.npu_queue_limit,
                device_type=model.device.type,
            )
        return EngineCore(
            executor=executor,
            tokenizer=self.tokenizer,
            limits=model.limits,
            seed=self.launch.args.seed,
            num_stages=placement.num_stages,
            replica=replica,
            start_time=self.launch.start_time,
        )

    def follow(self, replica: int, rank: int, leader: Connection, rendezvous: str) -> None:
        """Runs the leader's steps, in another process of the replica, until it is gone.

        Raises:
            FuriosaLLMError: As `lead`, which raises the same in its process.
            RuntimeError: Another process of the replica died.
        """
        place = self._settle(replica, rank)
        runner = self._load(replica, rank, rendezvous).make_runner(place.num_threads)
        follow(leader, runner, reports=rank % self.launch.placement.num_ranks == 0)

    def _settle(self, replica: int, rank: int) -> ProcessPlace:
        """Takes this process to its cores."""
        num_ranks = self.launch.placement.num_ranks
        place = self.launch.placement.replicas[replica][rank // num_ranks][rank % num_ranks]
        if place.cores:
            os.sched_setaffinity(0, place.cores)
        return place

    def _load(self, replica: int, rank: int, rendezvous: str) -> PreparedModel:
        placement = self.launch.placement
        stage, tensor_rank = divmod(rank, placement.num_ranks)
        device = placement.replicas[replica][stage][tensor_rank].device
        if placement.num_processes_of_replica == 1:
            return prepare_model(self.launch.args, device=device)
        group = join(
            RankPlace(
                pipeline_rank=stage,
                tensor_rank=tensor_rank,
                pipeline_parallel_size=placement.num_stages,
                tensor_parallel_size=placement.num_ranks,
                rendezvous=rendezvous,
                device=device,
            )
        )
        return prepare_rank(self.launch.args, group, num_replicas=placement.num_replicas)
