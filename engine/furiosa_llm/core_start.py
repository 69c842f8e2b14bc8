"""Loads a model and starts what answers prompts with it, in this process or in others."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from furiosa_llm.artifact.defaults import resolve_engine_args
from furiosa_llm.config import EngineArgs
from furiosa_llm.engine_core import EngineCore
from furiosa_llm.engine_limits import EngineLimits
from furiosa_llm.errors import ModelLoadError
from furiosa_llm.execution.step_queue import queue_for
from furiosa_llm.library_imports.loading import Loading, loading_libraries
from furiosa_llm.library_imports.quick_transformers import leave_torch_out
from furiosa_llm.machine_limits import count_gpus
from furiosa_llm.memory_limits import free_memory_bytes
from furiosa_llm.outputs import RequestOutput, StepStats
from furiosa_llm.replicas.launcher_process import LauncherProcess
from furiosa_llm.replicas.messages import Launch
from furiosa_llm.replicas.placement import Placement, place, usable_cores
from furiosa_llm.replicas.pool import ReplicaPool
from furiosa_llm.replicas.sizing import check_fits_memory, choose_num_replicas, weights_bytes
from furiosa_llm.request import TokenizedPrompt
from furiosa_llm.tokenization import Tokenizer

if TYPE_CHECKING:
    from furiosa_llm.execution.prepared_model import PreparedModel


class Core(Protocol):
    """What answers tokenized prompts: an `EngineCore` here, or a pool of them elsewhere."""

    @property
    def limits(self) -> EngineLimits:
        """What it was built for."""

    @property
    def last_steps(self) -> list[StepStats]:
        """The steps that the last call of `step` booked."""

    @property
    def num_unfinished(self) -> int:
        """Prompts whose answers are not complete."""

    def __contains__(self, request_id: str) -> bool:
        """Tells whether a prompt of this name is unfinished."""

    def add(self, prompt: TokenizedPrompt) -> None:
        """Takes a prompt in, or refuses it with a RequestError."""

    def waiting(self) -> list[str]:
        """Returns the prompts whose answers have not begun."""

    def abort(self, request_ids: Iterable[str]) -> None:
        """Gives prompts up."""

    def step(self) -> list[RequestOutput]:
        """Goes on until there is something to tell."""

    def close(self) -> None:
        """Ends its threads and processes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StartedCore:
    """What answers prompts, and the tokenizer that makes them.

    Attributes:
        core: What answers.
        tokenizer: Of the model.
        placement: The processes of each replica.
        import_seconds: Time that this process took to load libraries.
    """

    core: Core
    tokenizer: Tokenizer
    placement: Placement
    import_seconds: float


def start_core(args: EngineArgs, *, num_prompts: int | None) -> StartedCore:
    """Loads the model of `args` and starts the replicas that the devices hold.

    Args:
        args: What was asked for.
        num_prompts: About how many will come; None if that is not known.

    Raises:
        ModelLoadError: The model or its tokenizer cannot be loaded or is not supported.
        ConfigError: An option does not go with the model or with this machine.
        EngineError: A process died while it was started.
    """
    args = resolve_engine_args(args)
    available_bytes = free_memory_bytes()
    with loading_libraries() as loading:
        placement = _place(args, num_prompts=num_prompts, available_bytes=available_bytes)
        if placement.is_one_process:
            from furiosa_llm.execution.prepared_model import prepare_model  # loads torch
    if placement.is_one_process:
        return _start_here(args, placement, prepare_model, loading)
    num_processes = placement.num_replicas * placement.num_processes_of_replica
    check_fits_memory(num_processes, available_bytes=available_bytes)
    return _start_replicas(args, placement)


def _place(args: EngineArgs, *, num_prompts: int | None, available_bytes: int) -> Placement:
    cores = usable_cores()
    num_cpu_replicas = choose_num_replicas(
        num_cores=len(cores),
        weights_bytes=weights_bytes(args.model),
        available_bytes=available_bytes,
        num_prompts=num_prompts,
    )
    return place(args, cores=cores, num_gpus=count_gpus(), num_cpu_replicas=num_cpu_replicas)


def _start_here(
    args: EngineArgs,
    placement: Placement,
    prepare_model: Callable[..., PreparedModel],
    loading: Loading,
) -> StartedCore:
    (((process,),),) = placement.replicas
    prepared = prepare_model(args, device=process.device)
    tokenizer = Tokenizer.from_engine_args(args)
    runner = prepared.make_runner(process.num_threads)
    limits = prepared.limits
    executor = queue_for(
        runner, limits.scheduler_config.npu_queue_limit, device_type=prepared.device.type
    )
    core = EngineCore(executor=executor, tokenizer=tokenizer, limits=limits, seed=args.seed)
    return StartedCore(
        core=core, tokenizer=tokenizer, placement=placement, import_seconds=loading.seconds
    )


def _start_replicas(args: EngineArgs, placement: Placement) -> StartedCore:
    """Starts the launcher before this process loads a library: both take seconds for theirs."""
    launcher = LauncherProcess(Launch(args, placement, time.monotonic()))
    with contextlib.ExitStack() as stack:
        stack.callback(launcher.close)
        if not args.trust_remote_code:  # what comes with a checkpoint may ask for anything
            leave_torch_out()
        try:
            with loading_libraries() as loading:
                tokenizer = Tokenizer.from_engine_args(args)
        except ModelLoadError:
            launcher.wait_until_ready()  # what is wrong with the model is told first
            raise
        core = ReplicaPool(launcher, placement.num_replicas)
        stack.pop_all()
    return StartedCore(
        core=core, tokenizer=tokenizer, placement=placement, import_seconds=loading.seconds
    )
