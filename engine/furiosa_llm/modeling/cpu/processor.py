"""What the processor can do, as far as kernels are concerned."""

from __future__ import annotations

from llvmlite import binding
from numba import config as numba_config


def has(*features: str) -> bool:
    """Tells whether kernels may use these instructions, by LLVM's names for them.

    They may if the processor has them, unless `NUMBA_CPU_FEATURES` says what it has, or numba
    leaves AVX alone.
    """
    if not numba_config.ENABLE_AVX and any(name.startswith(("avx", "amx")) for name in features):
        return False
    if numba_config.CPU_FEATURES is not None:
        return {f"+{feature}" for feature in features} <= set(numba_config.CPU_FEATURES.split(","))
    found = binding.get_host_cpu_features()
    return all(found.get(feature, False) for feature in features)


def reads_ahead() -> bool:
    """Tells whether memory is read fastest if a kernel that waits for it asks for nothing ahead.

    AMD's processors fetch what follows by themselves; what a kernel asks for only stands in their
    way. Others gain by it.
    """
    name = numba_config.CPU_NAME or binding.get_host_cpu_name()
    return str(name).startswith("znver")
