"""Memory that begins a line of a processor's caches.

numpy's begins anywhere, and then most vectors of sixteen floats lie in two lines: reading or
writing one takes twice as long.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

LINE_BYTES = 64


def empty(shape: Sequence[int], dtype: npt.DTypeLike = np.float32) -> npt.NDArray[Any]:
    """Returns an array of anything, like numpy's."""
    kind = np.dtype(dtype)
    num_bytes = math.prod(shape) * kind.itemsize
    memory = np.empty(num_bytes + LINE_BYTES, np.uint8)
    start = -memory.ctypes.data % LINE_BYTES
    return memory[start : start + num_bytes].view(kind).reshape(tuple(shape))
