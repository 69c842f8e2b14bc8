"""How much of the time a device does nothing, from a trace of what runs on it."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch.profiler import ProfilerActivity, profile

Span = tuple[float, float]  # begin and end, in microseconds

_ACTIVITIES = {"cuda": ProfilerActivity.CUDA, "cpu": ProfilerActivity.CPU}


def traced_spans(work: Callable[[], object], device: torch.device) -> list[Span]:
    """Does some work and returns when something ran on the device meanwhile, graphs' kernels too.

    Tracing takes time of the host, so that a device which waits for the host waits longer.
    """
    with profile(activities=[_ACTIVITIES[device.type]]) as trace:
        work()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
    return [
        (event.time_range.start, event.time_range.end)
        for event in trace.events() or ()
        if event.device_type.name.lower() == device.type
    ]


def idle_share(spans: Iterable[Span]) -> float | None:
    """Returns the share of the time from the first begin to the last end in which nothing ran.

    None where nothing did.
    """
    ordered = sorted(spans)
    if not ordered:
        return None
    first, last = ordered[0]
    idle = 0.0
    for begin, end in ordered[1:]:
        idle += max(begin - last, 0.0)
        last = max(last, end)
    return idle / (last - first) if last > first else 0.0
