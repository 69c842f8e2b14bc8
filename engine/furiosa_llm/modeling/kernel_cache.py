"""Keeps compiled kernels on disk, so that only the first start compiles them."""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from numba import config as numba_config

_logger = logging.getLogger(__name__)


class Kernel(Protocol):
    """A function that numba compiles."""

    def enable_caching(self) -> None:
        """Looks for compiled code on disk from now on, and leaves it there."""


def keep_compiled(kernels: Sequence[Kernel], cache_dir: str | None) -> None:
    """Lets kernels that are not compiled yet use `cache_dir`; None keeps nothing on disk.

    A folder that cannot be written costs time and no answer, so it is only logged.
    """
    if cache_dir is None:
        return
    folder = Path(cache_dir).expanduser() / "kernels"
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        _logger.warning("%s: kernels are not kept: %s", folder, error.strerror)
        return
    if not os.access(folder, os.W_OK | os.X_OK):
        _logger.warning("%s: kernels are not kept: the folder is not writable", folder)
        return
    numba_config.CACHE_DIR = str(folder)
    for kernel in kernels:
        kernel.enable_caching()
