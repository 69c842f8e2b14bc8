"""How much memory may still be taken before the kernel refuses it, or ends a process for it."""

from __future__ import annotations

import resource
from collections.abc import Iterator
from pathlib import Path

from furiosa_llm.errors import ConfigError

_ROOT = Path("/")
_V1 = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
_V2 = ("memory.max", "memory.current", "inactive_file")
_RESOURCES = ((resource.RLIMIT_AS, "VmSize"), (resource.RLIMIT_DATA, "VmData"))


def free_memory_bytes(root: Path = _ROOT) -> int:
    """Returns the least of what the machine, each cgroup and the process's limits leave.

    Args:
        root: Where `proc` and `sys` are.

    Raises:
        ConfigError: The machine does not tell.
    """
    available = _table_bytes(root / "proc/meminfo", "MemAvailable")
    if available is None:
        raise ConfigError(
            "/proc/meminfo does not tell MemAvailable; give --paged-attention-num-blocks"
        )
    return max(min([available, *_left_in_cgroups(root), *_left_to_process(root)]), 0)


def _left_in_cgroups(root: Path) -> Iterator[int]:
    """What the limit of each control group leaves: the process's own and those around it."""
    try:
        lines = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError:
        return
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if "memory" in controllers.split(","):
            yield from _left_on_the_way(root / "sys/fs/cgroup/memory", path, _V1)
        elif not controllers:
            yield from _left_on_the_way(root / "sys/fs/cgroup", path, _V2)


def _left_on_the_way(mount: Path, path: str, names: tuple[str, str, str]) -> Iterator[int]:
    limit_name, used_name, cached_name = names
    group = mount / path.lstrip("/")
    for folder in (group, *group.parents):
        limit, used = _number(folder / limit_name), _number(folder / used_name)
        if limit is not None and used is not None:
            # The kernel gives up pages of files that no one has read lately before anything else.
            cached = _table_bytes(folder / "memory.stat", cached_name, unit=1) or 0
            yield limit - max(used - cached, 0)
        if folder == mount:
            return  # a container may see no more than this


def _left_to_process(root: Path) -> Iterator[int]:
    for kind, name in _RESOURCES:
        limit, _ = resource.getrlimit(kind)
        used = _table_bytes(root / "proc/self/status", name)
        if limit != resource.RLIM_INFINITY and used is not None:
            yield limit - used


def _table_bytes(path: Path, name: str, *, unit: int = 1024) -> int | None:
    """Returns an entry of a file of names and numbers; None if it has none."""
    try:
        lines = path.read_text().splitlines()
    except OSError:
        return None
    for line in lines:
        fields = line.replace(":", " ").split()
        if fields and fields[0] == name:
            return int(fields[1]) * unit
    return None


def _number(path: Path) -> int | None:
    """Returns the number in a file; None if there is none, or no limit."""
    try:
        text = path.read_text().strip()
    except OSError:
        return None
    return int(text) if text.isdigit() else None


def gib(num_bytes: int) -> str:
    """Writes a number of bytes as messages do: `1.50 GiB`."""
    return f"{num_bytes / 2**30:.2f} GiB"
