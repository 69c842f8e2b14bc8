"""What this machine has to offer, found out without loading torch where that can be."""

from __future__ import annotations

import importlib.util
import runpy
from pathlib import Path


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
