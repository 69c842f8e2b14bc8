"""Arrays in large pages are like numpy's, lie apart from each other, and are freed."""

from __future__ import annotations

import gc
import mmap
import weakref
from typing import Any

import numpy as np
import pytest

from furiosa_llm.modeling.cpu import huge_pages

needs_huge_pages = pytest.mark.skipif(
    not hasattr(mmap, "MADV_HUGEPAGE"), reason="the system has no large pages"
)


def memory_of(array: np.ndarray[Any, Any]) -> mmap.mmap:
    while not isinstance(array, memoryview):
        assert array.base is not None
        array = array.base
    assert isinstance(array.obj, mmap.mmap)
    return array.obj


@pytest.mark.parametrize("shape", [(0,), (3, 5), (100, 300), (7, 1 << 20), (9, 1 << 22)])
@pytest.mark.parametrize("dtype", [np.float32, np.int8])
def test_an_array_is_like_one_of_numpy(shape: tuple[int, ...], dtype: type) -> None:
    array = huge_pages.zeros(shape, dtype)

    assert array.shape == shape
    assert array.dtype == dtype
    assert array.flags.c_contiguous
    assert array.flags.writeable
    assert not array.any()


def test_arrays_do_not_overlap() -> None:
    arrays = [huge_pages.zeros([20_000 + 7 * i], np.float32) for i in range(600)]
    for i, array in enumerate(arrays):
        array[:] = i

    assert all((array == i).all() for i, array in enumerate(arrays))
    assert all(array.ctypes.data % 64 == 0 for array in arrays)


@needs_huge_pages
def test_memory_is_freed_with_the_last_array_in_it() -> None:
    first, second = (huge_pages.zeros([100_000], np.float64) for _ in range(2))
    rounded = huge_pages.zeros([100_000], np.int16)
    memory = weakref.ref(memory_of(first))
    assert memory_of(second) is memory()
    assert memory_of(rounded) is not memory()  # floats may go before what they are rounded to

    del first
    gc.collect()
    assert memory() is not None
    second[:] = 1
    del second
    gc.collect()

    assert memory() is None
    assert not huge_pages.zeros([100_000], np.float64).any()


@needs_huge_pages
def test_memory_that_the_system_refuses_is_a_memory_error() -> None:
    with pytest.raises(MemoryError, match="refuses 4611686018427387904 bytes"):
        huge_pages.zeros([1 << 60], np.float32)
