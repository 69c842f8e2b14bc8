"""Lets torch load its meta kernels that are written in Python when one is wanted and not before.

A meta kernel tells the shape of a result. Those of C++ suffice to outline most models; the others
are thousands, and with sympy, which some of them load, take a fifth of the time of a start. Whoever
compiles or traces loads them, and `with_meta_kernels` does where one turns out to be missing.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import TypeVar

from furiosa_llm.library_imports.delayed import DelayedModule, delay, load_whole

_MODULE = "torch._meta_registrations"
# What all that traces loads. The last one and the second load each other.
_NEEDED_BY = ("torch._decomp", "torch._prims", "torch._refs", "torch.utils._content_store")

T = TypeVar("T")


def delay_meta_kernels() -> None:
    """See `delay`."""
    delay(_MODULE, DelayedModule, lambda name: name in _NEEDED_BY)


def with_meta_kernels(outline: Callable[[], T]) -> T:
    """Calls what makes tensors on the meta device; again with all kernels where one is missing.

    Raises:
        NotImplementedError: torch has no kernel for something.
    """
    try:
        return outline()
    except NotImplementedError:
        if not load_whole(sys.modules.get(_MODULE)):
            raise
        return outline()
