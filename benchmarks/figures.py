"""What repeated measurements say together."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Spread:
    """The middle one of some values, and how far they reach."""

    median: float
    lowest: float
    highest: float


def spread(values: Sequence[float]) -> Spread:
    """Returns the spread of one or more values."""
    return Spread(median=statistics.median(values), lowest=min(values), highest=max(values))


def times_as_fast(ours: Sequence[float], theirs: Sequence[float]) -> list[float]:
    """Returns how many times as fast as another engine ours was in each round that both ran.

    Both ran one after the other in a round, so that a noisy hour slows both.

    Args:
        ours: Seconds of our rounds.
        theirs: Seconds of the other's; it may have run in fewer of them, the first ones.
    """
    return [other / own for own, other in zip(ours, theirs, strict=False)]


def matrix_shares(
    flops: float, seconds: Sequence[float], matrix_rates: Sequence[float]
) -> list[float]:
    """Returns which part of the machine's matrix rate of its round each run reached.

    Args:
        flops: Floating-point operations of the workload.
        seconds: Of each run.
        matrix_rates: GFLOP/s measured in each round.
    """
    return [flops / 1e9 / run / rate for run, rate in zip(seconds, matrix_rates, strict=False)]
