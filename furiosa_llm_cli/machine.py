"""What the program runs on: without it, figures mean little and failures are hard to explain."""

from __future__ import annotations

import os
import platform
from dataclasses import dataclass
from pathlib import Path

from furiosa_llm_cli.version import installed_version, program_version

_LIBRARIES = ("torch", "transformers", "numba", "numpy")
_VARIABLES = (
    "OMP_NUM_THREADS",
    "OMP_WAIT_POLICY",
    "CUDA_VISIBLE_DEVICES",
    "HF_HOME",
    "XDG_CACHE_HOME",
)
_CPU_INFO = Path("/proc/cpuinfo")
# Those that decide how fast matrices are multiplied.
_CPU_FEATURES = (
    "avx2",
    "fma",
    "avx512f",
    "avx512_vnni",
    "avx512_bf16",
    "amx_int8",
    "amx_bf16",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Machine:
    """Processor, cores and memory.

    Attributes:
        cpu: The processor's model.
        cpu_features: Which of the features that matter it has; None where it does not tell.
        cores: All of them.
        usable_cores: How many this process may run on.
        memory_bytes: All of it, whoever uses it.
        system: Name and version of the operating system.
    """

    cpu: str
    cpu_features: dict[str, bool] | None
    cores: int
    usable_cores: int
    memory_bytes: int
    system: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Gpu:
    """A GPU that torch can use."""

    name: str
    memory_bytes: int


def machine() -> Machine:
    """Looks at the machine."""
    return Machine(
        cpu=_cpu_field("model name") or platform.processor() or "unknown",
        cpu_features=_cpu_features(),
        cores=os.cpu_count() or 0,
        usable_cores=len(usable_cores()),
        memory_bytes=os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"),
        system=platform.platform(),
    )


def usable_cores() -> set[int]:
    """Returns the cores that this process may run on."""
    return os.sched_getaffinity(0)


def gpus() -> list[Gpu]:
    """Returns the GPUs that torch can use. Loads torch."""
    import torch

    if not torch.cuda.is_available():
        return []
    found = map(torch.cuda.get_device_properties, range(torch.cuda.device_count()))
    return [Gpu(name=gpu.name, memory_bytes=gpu.total_memory) for gpu in found]


def variables() -> dict[str, str | None]:
    """Returns the environment variables that change how the engine runs; no secret is one."""
    return {name: os.environ.get(name) for name in _VARIABLES}


def versions() -> dict[str, str | None]:
    """Returns the versions of the program, of Python, and of the libraries that decide speed."""
    return {
        "furiosa-llm-cli": program_version(),
        "python": platform.python_version(),
        **{name: installed_version(name) for name in _LIBRARIES},
    }


def _cpu_features() -> dict[str, bool] | None:
    flags = _cpu_field("flags")
    if flags is None:
        return None
    present = set(flags.split())
    return {name: name in present for name in _CPU_FEATURES}


def _cpu_field(name: str) -> str | None:
    """Returns what Linux tells of the first core."""
    if _CPU_INFO.is_file():
        for line in _CPU_INFO.read_text(encoding="utf-8").splitlines():
            key, _, value = line.partition(":")
            if key.strip() == name:
                return value.strip()
    return None
