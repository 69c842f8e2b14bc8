"""Keeps memory that a step has used for the next one."""

from __future__ import annotations

import ctypes

# As glibc's malloc.h numbers them.
_TRIM_THRESHOLD = -1
_MMAP_THRESHOLD = -3
_LARGEST_PIECE = 32 << 20  # glibc takes no more
_MOST = 1 << 30


def keep_freed_memory() -> None:
    """Lets freed memory stay with the process, where the C library is glibc.

    It gives large pieces back to the system otherwise, and each step would be given new pages for
    them, one fault after the other: a tenth of the time of a step of 1,000 tokens.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):
        return
    mallopt(_MMAP_THRESHOLD, _LARGEST_PIECE)
    mallopt(_TRIM_THRESHOLD, _MOST)
