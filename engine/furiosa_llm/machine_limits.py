"""What this machine has to offer, found out without loading torch where that can be."""

from __future__ import annotations

import importlib.util
import runpy
from pathlib import Path

from furiosa_llm.errors import ConfigError


def free_memory_bytes() -> int:
    """Returns the main memory that may still be taken: the machine's, or that of the cgroup."""
    available = _meminfo_bytes("MemAvailable")
    limit, used = _cgroup_bytes("memory.max"), _cgroup_bytes("memory.current")
    if limit is not None and used is not None:
        available = min(available, max(limit - used, 0))
    return available


def count_gpus() -> int:
    """Returns how many GPUs torch can use. Loads torch, unless it was built for none."""
    if not _is_built_for_gpus():
        return 0
    import torch

    return torch.cuda.device_count()


def _is_built_for_gpus() -> bool:
    """Reads what torch says of its build; it is taken to know GPUs where it does not say."""
    spec = importlib.util.find_spec("torch")
    for folder in (spec and spec.submodule_search_locations) or ():
        about = Path(folder) / "version.py"
        if about.is_file():
            named = runpy.run_path(str(about))
            return any(named.get(kind, "unknown") is not None for kind in ("cuda", "hip"))
    return True


def _meminfo_bytes(name: str) -> int:
    for line in Path("/proc/meminfo").read_text().splitlines():
        if line.startswith(name + ":"):
            return int(line.split()[1]) * 1024
    raise ConfigError(f"/proc/meminfo does not tell {name}; give --paged-attention-num-blocks")


def _cgroup_bytes(name: str) -> int | None:
    path = Path("/sys/fs/cgroup") / name
    try:
        text = path.read_text().strip()
    except OSError:
        return None
    return int(text) if text.isdigit() else None
