"""A softmax that is taken block by block against one of all scores in float64."""

from __future__ import annotations

import numba
import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from furiosa_llm.modeling.cpu.online_softmax import LOWEST, take_scores
from furiosa_llm.modeling.cpu.simd import LANES, Floats

WIDTH = 32  # of a block
NO_CAP = 0.0


@numba.njit
def attend_to_blocks(
    scores: Floats, visible: npt.NDArray[np.int64], softcap: float, values: Floats
) -> float:
    """One query's sum of values [N * W] weighted by the softmax of scores [N, W] in powers of 2."""
    largest, totals = np.full(1, LOWEST, np.float32), np.zeros(LANES, np.float32)
    sums = np.zeros(LANES, np.float32)
    for block in range(scores.shape[0]):
        weights = scores[block].copy()
        bounds = visible[block, 0], visible[block, 1]
        take_scores((weights, 0, WIDTH), bounds, softcap, weights, 0, largest, totals, sums, LANES)
        for token in range(WIDTH):
            sums[0] += weights[token] * values[block * WIDTH + token]
    return float(sums[0] / totals.sum())


@st.composite
def rising_scores(draw: st.DrawFn) -> Floats:
    """Blocks whose scores rise or fall by little, which scales nothing, or by much."""
    steps = draw(st.lists(st.floats(-30, 30, width=32), min_size=1, max_size=6))
    noise = np.random.default_rng(draw(st.integers(0, 99))).normal(size=(len(steps), WIDTH))
    return (np.cumsum(steps)[:, None] + noise).astype(np.float32)


@given(scores=rising_scores(), hidden=st.integers(0, 2 * WIDTH), data=st.data())
def test_blocks_give_what_all_scores_at_once_give(
    scores: Floats, hidden: int, data: st.DataObject
) -> None:
    num_scores = scores.size
    first = min(hidden, num_scores - 1)
    stop = data.draw(st.integers(first + 1, num_scores))
    starts = np.arange(0, num_scores, WIDTH)
    visible = np.stack([np.maximum(first - starts, 0), np.minimum(stop - starts, WIDTH)], 1)
    values = np.random.default_rng(1).normal(size=num_scores).astype(np.float32)

    found = attend_to_blocks(scores, visible, NO_CAP, values)

    seen = scores.reshape(-1)[first:stop].astype(np.float64)
    weights = np.exp2(seen - seen.max())
    expected = float(weights @ values[first:stop] / weights.sum())
    assert found == pytest.approx(expected, rel=1e-4, abs=2e-5)


def test_a_cap_bounds_the_scores() -> None:
    scores = np.linspace(-60, 60, 2 * WIDTH, dtype=np.float32).reshape(2, WIDTH)
    values = np.arange(2 * WIDTH, dtype=np.float32)
    visible = np.array([[0, WIDTH], [0, WIDTH]])

    found = attend_to_blocks(scores, visible, 5.0, values)

    weights = np.exp(5.0 * np.tanh(scores.reshape(-1).astype(np.float64) / 5.0))
    assert found == pytest.approx(float(weights @ values / weights.sum()), rel=1e-5)
