"""Says where Triton keeps the programs that it compiles for a GPU."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

_VARIABLE = "TRITON_CACHE_DIR"

_temporary: list[tempfile.TemporaryDirectory[str]] = []  # removed when the process ends


def keep_programs(cache_dir: str | None) -> None:
    """Lets programs that are compiled from now on lie in `cache_dir`; None keeps nothing on disk.

    What the environment says comes first.
    """
    if _VARIABLE in os.environ:
        return
    if cache_dir is None:
        _temporary.append(tempfile.TemporaryDirectory(prefix="furiosa-llm-triton-"))
        os.environ[_VARIABLE] = _temporary[-1].name
    else:
        os.environ[_VARIABLE] = str(Path(cache_dir).expanduser() / "triton")
