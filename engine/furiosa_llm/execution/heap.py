"""What becomes of freed memory, where the C library is glibc."""

from __future__ import annotations

import ctypes

# As glibc's malloc.h numbers them.
_TRIM_THRESHOLD = -1
_MMAP_THRESHOLD = -3
_LARGEST_PIECE = 32 << 20  # glibc takes no more
_MOST = 1 << 30


def give_freed_memory_back() -> None:
    """Gives the system all that is free now: weights that were laid out anew, say."""
    _call("malloc_trim", 0)


def keep_freed_memory() -> None:
    """Lets what is freed from now on stay with the process.

    glibc gives large pieces back to the system otherwise, and each step would be given new pages
    for them, one fault after the other: a tenth of the time of a step of 1,000 tokens.
    """
    _call("mallopt", _MMAP_THRESHOLD, _LARGEST_PIECE)
    _call("mallopt", _TRIM_THRESHOLD, _MOST)


def _call(name: str, *arguments: int) -> None:
    try:
        function = getattr(ctypes.CDLL(None), name)
    except (AttributeError, OSError, TypeError):
        return
    function(*arguments)
