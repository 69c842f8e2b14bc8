"""What a benchmark ran on: without it, its figures mean little."""

from __future__ import annotations

import os
import platform
from pathlib import Path

from furiosa_llm_cli.version import installed_version, program_version

_LIBRARIES = ("torch", "transformers", "numba", "numpy")
_CPU_INFO = Path("/proc/cpuinfo")


def machine() -> dict[str, str | int]:
    """Returns processor, cores and memory."""
    return {
        "cpu": _cpu_model(),
        "cores": os.cpu_count() or 0,
        "usable_cores": len(os.sched_getaffinity(0)),
        "memory_bytes": os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"),
        "system": platform.platform(),
    }


def versions() -> dict[str, str | None]:
    """Returns the versions of the program, of Python, and of the libraries that decide speed."""
    return {
        "furiosa-llm-cli": program_version(),
        "python": platform.python_version(),
        **{name: installed_version(name) for name in _LIBRARIES},
    }


def _cpu_model() -> str:
    if _CPU_INFO.is_file():
        for line in _CPU_INFO.read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or "unknown"
