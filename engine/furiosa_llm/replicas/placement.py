"""Which process runs on which cores, with how many threads."""

from __future__ import annotations

import itertools
import logging
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from furiosa_llm.config import EngineArgs
from furiosa_llm.device_mesh import DeviceMesh, build_mesh, counted, fused_groups
from furiosa_llm.devices import Device, expand_devices, parse_devices
from furiosa_llm.errors import ConfigError

_logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class ProcessPlace:
    """Where one process runs.

    Attributes:
        device: `cpu`, or `cuda:N`.
        cores: The cores that it may use; empty for all.
        num_threads: To compute with on a CPU; None for torch's choice.
    """

    device: str
    cores: tuple[int, ...] = ()
    num_threads: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Placement:
    """The processes of each replica, `[dp][pp][ranks of a stage]`."""

    replicas: tuple[tuple[tuple[ProcessPlace, ...], ...], ...]

    def __str__(self) -> str:
        """Says for people what runs, as `2 replicas, 1 thread each, on cpu`."""
        first = self.replicas[0][0][0]
        parts = [counted(self.num_replicas, "replica")]
        if self.num_processes_of_replica > 1:
            shape = counted(self.num_stages, "stage")
            parts.append(f"each {shape} of {counted(self.num_ranks, 'process', 'processes')}")
        if first.num_threads is not None:
            parts.append(f"{counted(first.num_threads, 'thread')} each")
        stages = itertools.chain.from_iterable(self.replicas)
        devices = dict.fromkeys(process.device for process in itertools.chain.from_iterable(stages))
        return ", ".join([*parts, "on " + " ".join(devices)])

    @property
    def num_replicas(self) -> int:
        """Data-parallel replicas."""
        return len(self.replicas)

    @property
    def num_stages(self) -> int:
        """Pipeline stages of each replica."""
        return len(self.replicas[0])

    @property
    def num_ranks(self) -> int:
        """Tensor-parallel processes of each stage."""
        return len(self.replicas[0][0])

    @property
    def num_processes_of_replica(self) -> int:
        """Processes of each replica."""
        return self.num_stages * self.num_ranks

    @property
    def is_on_gpus(self) -> bool:
        """Whether the processes compute on GPUs."""
        return self.replicas[0][0][0].device != "cpu"

    @property
    def is_one_process(self) -> bool:
        """Whether the engine needs no process but its own, which is never pinned to cores."""
        is_one = self.num_replicas == self.num_processes_of_replica == 1
        return is_one and not self.replicas[0][0][0].cores


def place(
    args: EngineArgs, *, cores: Sequence[int], num_gpus: int, num_cpu_replicas: int = 1
) -> Placement:
    """Lays the engine of `args` over this machine.

    A process on plain `cpu`, or on an emulated NPU, gets an even share of the cores: one thread
    for each, but on an NPU no more than it has PEs.

    Args:
        args: What was asked for.
        cores: Numbers of the cores that this process may use.
        num_gpus: GPUs that torch sees.
        num_cpu_replicas: Replicas for a plain `cpu`, if the arguments leave that open.

    Raises:
        ConfigError: The devices do not exist, or the sizes do not fit them.
    """
    devices = expand_devices(
        parse_devices(args.devices or ("cuda" if num_gpus else "cpu")),
        num_gpus=num_gpus,
        cores=set(cores),
    )
    num_replicas = args.data_parallel_size
    if num_replicas is None and devices == (Device(kind="cpu"),):
        num_processes = (args.tensor_parallel_size or 1) * (args.pipeline_parallel_size or 1)
        num_replicas = max(num_cpu_replicas // num_processes, 1)
    mesh = build_mesh(
        devices,
        tensor_parallel_size=args.tensor_parallel_size,
        pipeline_parallel_size=args.pipeline_parallel_size,
        data_parallel_size=num_replicas,
    )
    if mesh.kind == "npu":
        _logger.warning("NPUs are emulated on this machine's CPU: %s", args.devices)
    return _Placer(mesh, cores, args.threads_per_replica).placement()


def usable_cores() -> tuple[int, ...]:
    """Returns the numbers of the cores that this process may use."""
    return tuple(sorted(os.sched_getaffinity(0)))


class _Placer:
    """Hands out cores, process after process."""

    def __init__(self, mesh: DeviceMesh, cores: Sequence[int], num_threads: int | None) -> None:
        self._mesh = mesh
        self._cores = cores
        self._num_threads = num_threads
        self._num_processes = (
            mesh.data_parallel_size * mesh.pipeline_parallel_size * mesh.num_processes_per_stage
        )
        self._num_placed = 0

    def placement(self) -> Placement:
        return Placement(
            replicas=tuple(
                tuple(tuple(map(self._place, fused_groups(ranks))) for ranks in stages)
                for stages in self._mesh.replicas
            )
        )

    def _place(self, group: Sequence[Device]) -> ProcessPlace:
        device = group[0]
        index, self._num_placed = self._num_placed, self._num_placed + 1
        if device.kind == "cuda":
            return ProcessPlace(device=str(device))
        if device.index is not None and device.kind == "cpu":
            if self._num_threads not in (None, 1):
                raise ConfigError(
                    f"threads_per_replica ({self._num_threads}) must be 1 on {device}, which is "
                    "one core; give --devices cpu for several"
                )
            return ProcessPlace(device="cpu", cores=(device.index,), num_threads=1)
        if (self._num_threads or 0) > len(self._cores):
            raise ConfigError(
                f"threads_per_replica ({self._num_threads}) must be at most {len(self._cores)}, "
                "the cores that this process may use"
            )
        share = max(len(self._cores) // self._num_processes, 1)
        if self._num_processes == 1:
            is_whole = self._num_threads is None and device.kind == "cpu"
            num_threads = None if is_whole else self._num_threads or min(share, len(group))
            return ProcessPlace(device="cpu", num_threads=num_threads)
        most = share if device.pe is None else len(group)  # an NPU's threads are its PEs
        num_threads = self._num_threads or min(share, most)
        cores = tuple(self._take(index * share, max(share, num_threads)))
        return ProcessPlace(device="cpu", cores=cores, num_threads=num_threads)

    def _take(self, start: int, number: int) -> Iterator[int]:
        """Cores from a place on; from the first again where there are too few."""
        for offset in range(min(number, len(self._cores))):
            yield self._cores[(start + offset) % len(self._cores)]
