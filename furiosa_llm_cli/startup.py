"""Settings for the import of torch and transformers, and for the threads that torch starts."""

from __future__ import annotations

import contextlib
import gc
import os
from collections.abc import Iterator


@contextlib.contextmanager
def loading_libraries() -> Iterator[None]:
    """Surrounds the import of large libraries.

    The cyclic garbage collector stops inside the block. An import makes hundreds of thousands of
    objects that live as long as the process; collections walk them again and again and find
    nothing, 0.4 to 1.1 s of the 4.8 s that torch and transformers take. Afterwards they are
    frozen, and later collections do not walk them either.

    Threads that wait for work sleep instead of spinning, unless OMP_WAIT_POLICY says otherwise;
    it is read when torch is loaded. Spinning threads keep a core from the thread that they wait
    for: on two cores beside two busy processes, a model of 135 million parameters was 5.7 times
    slower with them, and on a quiet machine not faster.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        if was_enabled:
            gc.enable()
