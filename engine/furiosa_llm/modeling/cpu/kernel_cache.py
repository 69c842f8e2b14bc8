"""Keeps compiled kernels on disk, so that only the first start compiles them."""

from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from numba import config as numba_config

from furiosa_llm.modeling.cpu.amx import HAS_AMX

_logger = logging.getLogger(__name__)


class Kernel(Protocol):
    """A function that numba compiles."""

    def enable_caching(self) -> None:
        """Looks for compiled code on disk from now on, and leaves it there."""


def keep_compiled(kernels: Sequence[Kernel], cache_dir: str | None) -> None:
    """Lets kernels that are not compiled yet use `cache_dir`; None keeps nothing on disk.

    A folder that cannot be written costs time and no answer, so it is only logged. So is that a
    start takes longer because there is nothing in it yet.
    """
    if cache_dir is None:
        return
    folder = Path(cache_dir).expanduser() / "kernels" / _hash_of_sources()
    is_first_start = not folder.exists()
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        _logger.warning("%s: kernels are not kept: %s", folder, error.strerror)
        return
    if not os.access(folder, os.W_OK | os.X_OK):
        _logger.warning("%s: kernels are not kept: the folder is not writable", folder)
        return
    if is_first_start:
        _logger.info(
            "compiling kernels for this processor, once, which takes about half a minute; "
            "they are kept in %s",
            folder,
        )
    numba_config.CACHE_DIR = str(folder)
    for kernel in kernels:
        kernel.enable_caching()


def _hash_of_sources() -> str:
    """Tells versions of this package apart, and whether a system lets it use all of a processor.

    numba compiles a kernel again when the file that defines it changes, but not when one does that
    it takes functions or numbers from.
    """
    digest = hashlib.sha256(bytes([HAS_AMX]))
    for path in sorted(Path(__file__).parent.glob("*.py")):
        digest.update(path.read_bytes())
    return digest.hexdigest()[:16]
