"""Which devices work together: `[data parallel][pipeline parallel][tensor parallel]`."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Sequence
from dataclasses import dataclass

from furiosa_llm.devices import MAX_PROCESSES, NUM_PES_PER_NPU, Device, DeviceKind, format_devices
from furiosa_llm.errors import ConfigError

Group = tuple[Device, ...]  # the ranks of one tensor-parallel group

_NOUNS: dict[DeviceKind, str] = {"npu": "PE", "cpu": "core", "cuda": "GPU"}
_ELASTIC = Device(kind="cpu")

_logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceMesh:
    """What each replica, each of its pipeline stages and each rank of a stage runs on.

    Attributes:
        replicas: `[dp][pp][tp]`.
        dropped: The devices that are left over.
    """

    replicas: tuple[tuple[Group, ...], ...]
    dropped: tuple[Device, ...] = ()

    @property
    def kind(self) -> DeviceKind:
        """What kind all its devices are."""
        return self.replicas[0][0][0].kind

    @property
    def data_parallel_size(self) -> int:
        """How many replicas there are."""
        return len(self.replicas)

    @property
    def pipeline_parallel_size(self) -> int:
        """How many stages each replica has."""
        return len(self.replicas[0])

    @property
    def tensor_parallel_size(self) -> int:
        """How many ranks each stage has."""
        return len(self.replicas[0][0])

    @property
    def num_processes_per_stage(self) -> int:
        """How many processes compute a stage; on NPUs one for each NPU, however many PEs it has."""
        return len(fused_groups(self.replicas[0][0]))

    @property
    def num_ranks_per_process(self) -> int:
        """How many ranks each process stands for: on NPUs its number of threads, 1 elsewhere."""
        return self.tensor_parallel_size // self.num_processes_per_stage

    def facts(self) -> list[tuple[str, str]]:
        """Returns names and values that describe the mesh to people."""
        sizes = (
            counted(self.data_parallel_size, "replica"),
            counted(self.pipeline_parallel_size, "stage"),
            counted(self.tensor_parallel_size, _noun(self.replicas[0][0][0])),
        )
        facts = [("shape", " x ".join(sizes))]
        if self.replicas[0][0][0] == _ELASTIC:
            return [*facts, ("all on", str(_ELASTIC))]
        for index, stages in enumerate(self.replicas):
            facts.append((f"replica {index}", " | ".join(map(format_devices, stages))))
        if self.dropped:
            facts.append(("not used", format_devices(self.dropped)))
        return facts

    def __str__(self) -> str:
        return "\n".join(f"{name}: {value}" for name, value in self.facts())


@dataclass(frozen=True, slots=True, kw_only=True)
class _Sizes:
    """The sizes of a mesh; `dp` is None where it follows from the devices."""

    tp: int
    pp: int
    dp: int | None

    def __str__(self) -> str:
        dp = "" if self.dp is None else f", data_parallel_size {self.dp}"
        return f"tensor_parallel_size {self.tp}, pipeline_parallel_size {self.pp}{dp}"


def build_mesh(
    devices: Sequence[Device],
    *,
    tensor_parallel_size: int | None = None,
    pipeline_parallel_size: int | None = None,
    data_parallel_size: int | None = None,
) -> DeviceMesh:
    """Lays out replicas, stages and ranks over devices of one kind, as `parse_devices` gives them.

    First the devices become groups of `tensor_parallel_size`, in order. On NPUs up to 8 PEs make
    an aligned group of one NPU (PEs 0-3 or 4-7, not 2-5), and more than 8 join whole NPUs; PEs
    outside such groups cannot be used. Elsewhere any neighbours in the list make a group.

    Then stage `s` of replica `r` gets group number `s * dp + r`, where the groups are numbered in
    order, at most `dp` of each NPU. So the stages of a replica lie on strictly increasing NPUs,
    and an NPU, where it can, holds the same stage of several replicas. This finds room for `dp`
    replicas whenever there is any. What has no number is left over: with one stage, the end.

    A plain `cpu` has room for everything, so each place of its mesh is that same device.

    Args:
        devices: A plain `cuda` must have been expanded (`expand_devices`).
        tensor_parallel_size: Devices that share each layer; 8 on NPUs and 1 elsewhere if None.
        pipeline_parallel_size: Stages that share the layers; 1 if None.
        data_parallel_size: Replicas; as many as there is room for if None, on plain `cpu` 1.

    Raises:
        ConfigError: A size cannot be, or the devices have no room for it.
    """
    assert devices, "a mesh needs devices"
    assert Device(kind="cuda") not in devices, "plain cuda must be expanded"
    kind = devices[0].kind
    default_tp = NUM_PES_PER_NPU if kind == "npu" else 1
    sizes = _Sizes(
        tp=default_tp if tensor_parallel_size is None else tensor_parallel_size,
        pp=1 if pipeline_parallel_size is None else pipeline_parallel_size,
        dp=data_parallel_size,
    )
    _check_sizes(sizes, kind)
    if devices[0] == _ELASTIC:
        stages = ((_ELASTIC,) * sizes.tp,) * sizes.pp
        return DeviceMesh(replicas=(stages,) * (sizes.dp or 1))
    places = _npu_places(devices, sizes.tp) if kind == "npu" else _places(devices, sizes.tp)
    return _lay_out(devices, places, sizes)


def fused_groups(ranks: Group) -> tuple[Group, ...]:
    """Returns the processes that compute a tensor-parallel group, each with its ranks.

    PEs of one NPU fuse into one process with as many threads. Elsewhere each rank is a process.
    """
    if ranks[0].kind != "npu":
        return tuple((device,) for device in ranks)
    by_npu = itertools.groupby(ranks, key=lambda device: device.index)
    return tuple(tuple(members) for _, members in by_npu)


def _check_sizes(sizes: _Sizes, kind: DeviceKind) -> None:
    for name, size in (
        ("tensor_parallel_size", sizes.tp),
        ("pipeline_parallel_size", sizes.pp),
        ("data_parallel_size", sizes.dp),
    ):
        if size is not None and not 1 <= size <= MAX_PROCESSES:
            limit = "least 1" if size < 1 else f"most {MAX_PROCESSES}"
            raise ConfigError(f"{name} must be at {limit}, got {size}")
    if kind == "npu" and sizes.tp not in (1, 2, 4) and sizes.tp % NUM_PES_PER_NPU:
        raise ConfigError(
            f"tensor_parallel_size must be 1, 2, 4 or a multiple of 8 on NPUs, got {sizes.tp}"
        )


def _places(devices: Sequence[Device], size: int) -> list[list[Group]]:
    """Returns each group alone: all lie in places of their own."""
    stop = len(devices) - size + 1
    return [[tuple(devices[start : start + size])] for start in range(0, stop, size)]


def _npu_places(devices: Sequence[Device], tp: int) -> list[list[Group]]:
    """Returns the groups of each NPU, or of each set of NPUs that tp > 8 joins."""
    size = min(tp, NUM_PES_PER_NPU)
    places: list[list[Group]] = []
    for _, members in itertools.groupby(devices, key=lambda device: device.index):
        by_start = itertools.groupby(members, key=lambda device: (device.pe or 0) // size)
        groups = [tuple(group) for _, group in by_start]
        places.append([group for group in groups if len(group) == size])
    if tp <= NUM_PES_PER_NPU:
        return places
    return _places([device for groups in places for group in groups for device in group], tp)


def _lay_out(devices: Sequence[Device], places: list[list[Group]], sizes: _Sizes) -> DeviceMesh:
    dp = sizes.dp or _max_replicas(places, sizes.pp) or 1
    groups = [group for place in places for group in place[:dp]]
    num_groups = dp * sizes.pp
    if len(groups) < num_groups:
        raise ConfigError(_no_room(devices, places, sizes, dp))
    groups = groups[:num_groups]
    # Any dp groups in a row have different remainders, and an NPU has at most dp of them:
    # a replica meets each NPU once.
    replicas = tuple(tuple(groups[replica::dp]) for replica in range(dp))
    used = {device for group in groups for device in group}
    dropped = tuple(device for device in devices if device not in used)
    if dropped:
        _logger.info(
            "%d of %s are not used: %s",
            len(dropped),
            counted(len(devices), _noun(devices[0])),
            format_devices(dropped),
        )
    return DeviceMesh(replicas=replicas, dropped=dropped)


def _max_replicas(places: list[list[Group]], pp: int) -> int:
    """Returns how many replicas find room when each takes `pp` groups from different places."""
    most = sum(map(len, places)) // pp
    return next(
        (dp for dp in range(most, 0, -1) if sum(min(len(p), dp) for p in places) >= dp * pp), 0
    )


def _no_room(devices: Sequence[Device], places: list[list[Group]], sizes: _Sizes, dp: int) -> str:
    noun = _noun(devices[0])
    given = f"{counted(len(devices), noun)} given ({format_devices(devices)})"
    num_groups = sum(map(len, places))
    if num_groups >= dp * sizes.pp:
        return (
            f"pipeline parallelism across PEs of one device has no benefit: each replica needs "
            f"{sizes.pp} different NPUs for its stages, which the {given} do not offer to "
            f"{counted(dp, 'replica')} at once; give more NPUs, or lower one of {sizes}"
        )
    num_needed = sizes.tp * sizes.pp * dp
    message = (
        f"Not enough devices to run the model. {counted(num_needed, noun)} are required. Give "
        f"more than the {given}, or lower one of {sizes}"
    )
    if len(devices) < num_needed:
        return message
    size = min(sizes.tp, NUM_PES_PER_NPU)
    return (
        f"{message}; {num_groups * sizes.tp} of them can be used, because PEs work together in "
        f"aligned groups of {size} within one NPU"
    )


def _noun(device: Device) -> str:
    return "rank" if device == _ELASTIC else _NOUNS[device.kind]


def counted(number: int, noun: str, plural: str | None = None) -> str:
    """Returns `1 replica`, `1,000 rows`."""
    return f"{number:,} {noun if number == 1 else plural or noun + 's'}"
