"""Makes the import of torch and transformers cheaper."""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Iterator


@contextlib.contextmanager
def without_gc() -> Iterator[None]:
    """Stops the cyclic garbage collector inside a block, which is to import large libraries.

    An import makes hundreds of thousands of objects that live as long as the process. Collections
    walk them again and again and find nothing: 0.4 to 1.1 s of the 4.8 s that torch and
    transformers take. Afterwards they are frozen, and later collections do not walk them either.
    """
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        if was_enabled:
            gc.enable()
