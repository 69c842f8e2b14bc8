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
