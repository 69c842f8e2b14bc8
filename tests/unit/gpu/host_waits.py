"""Finds where the host would wait for a GPU, on a CPU."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

# What needs a value of a tensor on the host: to branch, or for the shape of its result.
_WAITING = frozenset(
    {"_local_scalar_dense", "equal", "is_nonzero", "nonzero", "masked_select", "unique_dim"}
)


# What copies a tensor to the host at once, which on a CPU is no operation.
_READING = frozenset({"tolist", "item", "__bool__", "__int__", "__float__"})


class HostReads(TorchFunctionMode):
    """Notes the methods that read a tensor, by name."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_function__(
        self,
        func: Any,
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        if func.__name__ in _READING:
            self.names.append(func.__name__)
        return func(*args, **(kwargs or {}))


class HostWaits(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Notes the operations that wait, by name."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.names: list[str] = []

    def __torch_dispatch__(
        self,
        func: Any,
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        name = func._schema.name.removeprefix("aten::")
        by_mask = name in ("index", "index_put", "index_put_") and any(
            isinstance(index, torch.Tensor) and index.dtype == torch.bool for index in args[1]
        )
        if name in _WAITING or by_mask:
            self.names.append(name)
        return func(*args, **(kwargs or {}))
