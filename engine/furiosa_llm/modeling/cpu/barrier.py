"""A place in compiled code where the threads of a process wait for each other."""

from __future__ import annotations

from typing import Any

import numba
import numpy as np
import numpy.typing as npt
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

Counter = npt.NDArray[np.int64]

_INT32, _INT64 = ir.IntType(32), ir.IntType(64)
_NUM_SPINS = 4000  # some ten microseconds; whoever takes longer may have lost its core


def new_counter() -> Counter:
    """Makes the counter of a barrier that any number of waits may use, one after the other."""
    return np.zeros(1, np.int64)


@numba.njit(nogil=True)
def wait_for_all(counter: Counter, num_threads: int) -> None:
    """Returns when all threads have called it equally often."""
    if num_threads == 1:
        return
    num_calls = _add_one(counter)
    goal = -(-num_calls // num_threads) * num_threads
    num_spins = 0
    while _read(counter) < goal:
        num_spins += 1
        if num_spins > _NUM_SPINS:
            _let_others_run()


@intrinsic
def _add_one(typing: Any, counter: Any) -> Any:
    """Adds one to a counter that threads share, and returns the sum."""

    def emit(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        data = context.make_array(signature.args[0])(context, builder, arguments[0]).data
        return builder.add(builder.atomic_rmw("add", data, _INT64(1), "seq_cst"), _INT64(1))

    return types.int64(counter), emit


@intrinsic
def _read(typing: Any, counter: Any) -> Any:
    """Returns what a counter is now, with all that other threads wrote before they added to it."""

    def emit(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        data = context.make_array(signature.args[0])(context, builder, arguments[0]).data
        return builder.load_atomic(data, "seq_cst", align=8)

    return types.int64(counter), emit


@intrinsic
def _let_others_run(typing: Any) -> Any:
    """Offers the core to other threads."""

    def emit(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        function_type = ir.FunctionType(_INT32, [])
        function = cgutils.get_or_insert_function(builder.module, function_type, "sched_yield")
        builder.call(function, [])
        return context.get_dummy_value()

    return types.void(), emit
