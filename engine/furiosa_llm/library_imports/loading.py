"""Surrounds the import of large libraries: without the garbage collector, and timed."""

from __future__ import annotations

import contextlib
import gc
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass


@dataclass(slots=True)
class Loading:
    """How long libraries took to load, once they are."""

    seconds: float = 0.0


@contextlib.contextmanager
def loading_libraries() -> Iterator[Loading]:
    """Surrounds the import of large libraries, and takes the time.

    The cyclic garbage collector stops inside the block. An import makes hundreds of thousands of
    objects that live as long as the process; collections walk them again and again and find
    nothing, 0.4 to 1.1 s of the 4.8 s that torch and transformers take. If torch is loaded here,
    they are frozen afterwards, and later collections do not walk them either. Else they are not:
    a model that was dropped and waits for a collection would never be freed.
    """
    loading = Loading()
    start = time.monotonic()
    was_enabled, had_torch = gc.isenabled(), "torch" in sys.modules
    gc.disable()
    try:
        yield loading
    finally:
        if not had_torch:
            gc.freeze()
        if was_enabled:
            gc.enable()
        loading.seconds = time.monotonic() - start
