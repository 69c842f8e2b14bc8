"""Memory in pages of 2 MiB, for what each step reads from end to end: weights, and the KV cache.

What is one stretch of memory to a program lies scattered over the machine, page by page. With
pages of 4 KiB a processor has to look up the next one all the time, and what it reads ahead of
need ends with each of them.
"""

from __future__ import annotations

import contextlib
import math
import mmap
import weakref
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from furiosa_llm.modeling.cpu.aligned import LINE_BYTES

_SMALLEST_BYTES = 1 << 16  # of an array that is worth it
_CHUNK_BYTES = 32 << 20  # that arrays share, each of which would leave most of a page unused

# The chunk that the next array of a type goes to, while any array is in it, and where. Types keep
# apart what becomes free at different times: weights that are rounded, and what they become.
_chunks: dict[np.dtype[Any], tuple[weakref.ref[mmap.mmap], int]] = {}


def zeros(shape: Sequence[int], dtype: npt.DTypeLike) -> npt.NDArray[Any]:
    """Returns an array of zeros, like numpy's, in large pages where the system has them.

    Pages are taken only as they are written. A chunk is freed with the last of its arrays.

    Raises:
        MemoryError: The system refuses so many bytes.
    """
    kind, count = np.dtype(dtype), math.prod(shape)
    num_bytes = count * kind.itemsize
    if not hasattr(mmap, "MADV_HUGEPAGE") or num_bytes < _SMALLEST_BYTES:
        return np.zeros(tuple(shape), kind)
    if num_bytes > _CHUNK_BYTES // 2:
        memory, start = _reserve(num_bytes), 0
    else:
        memory, start = _place(kind, num_bytes)
    return np.frombuffer(memory, kind, count, start).reshape(tuple(shape))


def _place(kind: np.dtype[Any], num_bytes: int) -> tuple[mmap.mmap, int]:
    """Returns a chunk with room for an array, and where it begins."""
    reference, start = _chunks.get(kind, (None, 0))
    memory = None if reference is None else reference()
    if memory is None or start + num_bytes > len(memory):
        memory, start = _reserve(_CHUNK_BYTES), 0
    following = start + -(-num_bytes // LINE_BYTES) * LINE_BYTES
    _chunks[kind] = weakref.ref(memory), following
    return memory, start


def _reserve(num_bytes: int) -> mmap.mmap:
    try:
        memory = mmap.mmap(-1, num_bytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    except OSError as error:
        raise MemoryError(f"the system refuses {num_bytes} bytes of memory") from error
    with contextlib.suppress(OSError):  # a system that was built without them
        memory.madvise(mmap.MADV_HUGEPAGE)
    return memory
