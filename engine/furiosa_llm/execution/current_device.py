"""Makes a GPU the one that kernels are started on, in the thread that starts them."""

from __future__ import annotations

import contextlib
from contextlib import AbstractContextManager

import torch


def current_device(device: torch.device) -> AbstractContextManager[object]:
    """Returns a context in which a GPU is the current one; on a CPU it does nothing."""
    if device.type != "cuda":
        return contextlib.nullcontext()
    return torch.cuda.device(device)
