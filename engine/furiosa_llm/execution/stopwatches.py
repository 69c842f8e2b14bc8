"""How long the parts of a step take, on the host or on a GPU that runs behind it."""

from __future__ import annotations

import itertools
import time
from typing import Protocol

import torch

from furiosa_llm.modeling.pipeline_split import PipelineStage


class Stopwatch(Protocol):
    """Times one step, from when it is made."""

    def lap(self) -> None:
        """Ends a part of the step: all that the device was told since the part before."""

    def wait(self) -> list[float]:
        """Waits until the device has done every part. Returns the seconds that each took."""


def stopwatch(device: torch.device, stage: PipelineStage | None) -> Stopwatch:
    """Starts to time a step on a device. See `HostStopwatch` for the stage."""
    return GpuStopwatch() if device.type == "cuda" else HostStopwatch(stage)


class HostStopwatch:
    """Times what the host computes itself, so that there is nothing to wait for."""

    def __init__(self, stage: PipelineStage | None = None) -> None:
        """Starts.

        Args:
            stage: The stage, where there are several: waiting for the one before does not count.
        """
        self._stage = stage
        self._times = [self._now()]

    def lap(self) -> None:
        """See `Stopwatch`."""
        self._times.append(self._now())

    def wait(self) -> list[float]:
        """See `Stopwatch`."""
        return [stop - start for start, stop in itertools.pairwise(self._times)]

    def _now(self) -> float:
        return time.perf_counter() - (0.0 if self._stage is None else self._stage.waited_seconds)


class GpuStopwatch:
    """Times what the current stream of a GPU computes. Written on a CPU, not yet run on a GPU."""

    def __init__(self) -> None:
        self._events: list[torch.cuda.Event] = []
        self.lap()

    def lap(self) -> None:
        """See `Stopwatch`."""
        event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        event.record()
        self._events.append(event)

    def wait(self) -> list[float]:
        """See `Stopwatch`."""
        self._events[-1].synchronize()
        return [start.elapsed_time(stop) / 1e3 for start, stop in itertools.pairwise(self._events)]
