"""Brings what a step needs to a device, and what it brings to the host, without waiting."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch

_ALIGNMENT = 64  # bytes: kernels read whole cache lines
_DTYPES = {"int32": torch.int32, "int64": torch.int64}


@dataclass(frozen=True, slots=True)
class _Place:
    """Where an array lies, in bytes, and what it is."""

    start: int
    stop: int
    dtype: torch.dtype
    shape: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class PackedArrays:
    """Arrays that lie in one piece of memory on the host."""

    buffer: torch.Tensor  # [*] uint8, pinned where it is to be copied to a GPU
    places: dict[str, _Place]

    @classmethod
    def of(cls, arrays: Mapping[str, np.ndarray], device: torch.device) -> PackedArrays:
        """Copies arrays into pinned memory for a GPU, else into plain memory.

        torch gives pinned memory to nobody else until the copies that read it are done.
        """
        places: dict[str, _Place] = {}
        end = 0
        for name, array in arrays.items():
            dtype = _DTYPES[array.dtype.name]
            places[name] = _Place(end, end + array.nbytes, dtype, array.shape)
            end += -(-array.nbytes // _ALIGNMENT) * _ALIGNMENT
        buffer = torch.empty(end, dtype=torch.uint8, pin_memory=device.type == "cuda")
        content = buffer.numpy()
        for name, place in places.items():
            array = arrays[name]
            content[place.start : place.stop].view(array.dtype)[...] = array.reshape(-1)
        return cls(buffer, places)

    def to(self, device: torch.device) -> dict[str, torch.Tensor]:
        """Returns the arrays on a device. The host does not wait for the copy."""
        return self.views(self.buffer.to(device, non_blocking=True))

    def views(self, buffer: torch.Tensor) -> dict[str, torch.Tensor]:
        """Returns the arrays as parts of a buffer that holds, or will hold, the same bytes."""
        return {
            name: buffer[place.start : place.stop].view(place.dtype).view(place.shape)
            for name, place in self.places.items()
        }


def to_device(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    """Copies a tensor of the host to a device. The host does not wait for the copy."""
    if device.type == "cuda":
        tensor = tensor.pin_memory()  # the host waits for copies from other memory
    return tensor.to(device, non_blocking=True)


def to_host(tensor: torch.Tensor) -> torch.Tensor:
    """Copies a tensor of a GPU to pinned memory, to be read once the device has come so far."""
    return tensor.to("cpu", non_blocking=True)
