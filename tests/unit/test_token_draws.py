"""Drawn tokens are those of a float64 reference, by the kernel and by torch alike."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st

from furiosa_llm.execution.random_draws import stream_seed, uniform
from furiosa_llm.execution.token_draws import draw_with_kernel, draw_with_torch
from furiosa_llm.sampling_params import SamplingParams
from furiosa_llm.scheduler_output import SamplingInputs

WAYS = {"kernel": draw_with_kernel, "torch": draw_with_torch}
NEXT_TO = 1e-4  # of a limit, on either side: there float32 may fall on the other one


def entry(seed: int, **params: Any) -> SamplingInputs:
    return SamplingInputs(params=SamplingParams(**params), seed=stream_seed(seed), position=3)


def draws(way: str, logits: torch.Tensor, inputs: list[SamplingInputs]) -> list[int]:
    chosen = torch.full((len(inputs),), -7)
    rows = list(range(len(inputs)))
    if way == "kernel":
        draw_with_kernel(logits, inputs, rows, logits.amax(-1), chosen)
        return chosen.tolist()
    return draw_with_torch(logits, inputs, rows, chosen).tolist()


def is_clear(numbers: np.ndarray, limit: float) -> bool:
    return bool((np.abs(numbers - limit) > NEXT_TO).all())


def expected_token(scores: np.ndarray, drawn: SamplingInputs) -> int:
    """The token in float64; examples that rounding decides are left out."""
    params = drawn.params
    weights = np.exp((scores.astype(np.float64) - scores.max()) / params.temperature)
    stays = weights > 0
    if 0 < params.top_k < len(scores):
        stays &= weights >= np.sort(weights)[-params.top_k]
    if params.top_p < 1:
        ranked = np.sort(weights[stays])[::-1]
        shares = ranked.cumsum() / ranked.sum()
        assume(is_clear(shares, params.top_p))
        stays &= weights >= ranked[np.searchsorted(shares, params.top_p)]
    assume(is_clear(weights[weights < 1], params.min_p))
    stays &= weights >= params.min_p
    shares = np.where(stays, weights, 0).cumsum() / weights[stays].sum()
    place = uniform(drawn.seed, drawn.position)
    assume(is_clear(shares, place))
    return int(np.searchsorted(shares, place))


@pytest.mark.parametrize("way", WAYS)
@given(
    size=st.integers(1, 40) | st.integers(500, 1600),
    seed=st.integers(0, 2**32),
    spread=st.sampled_from([0.1, 1.0, 4.0, 30.0]),
    hidden=st.sampled_from([0.0, 0.5, 0.99]),
    params=st.fixed_dictionaries(
        {
            "temperature": st.floats(0.05, 3),
            "top_k": st.sampled_from([-1, 1, 2, 5, 50, 1000]),
            "top_p": st.sampled_from([0.01, 0.3, 0.9, 0.999, 1.0]),
            "min_p": st.sampled_from([0.0, 0.05, 0.9]),
        }
    ),
)
def test_a_drawn_token_is_that_of_the_reference(
    way: str, size: int, seed: int, spread: float, hidden: float, params: dict[str, Any]
) -> None:
    numbers = np.random.default_rng(seed)
    scores = (numbers.standard_normal(size) * spread + 50).astype(np.float32)
    scores[1:][numbers.random(size - 1) < hidden] = -np.inf
    drawn = entry(seed, **params)
    expected = expected_token(scores, drawn)

    assert draws(way, torch.from_numpy(scores)[None], [drawn]) == [expected]


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("params", [{"top_k": 3}, {"top_p": 0.45}], ids=str)
def test_tokens_of_the_same_score_stay_together(way: str, params: dict[str, Any]) -> None:
    # The likeliest two, and four that tie for what is left of three tokens or 0.45 of the weight.
    scores = torch.tensor([0.0, 2.0, 1.0, 1.0, 2.0, 1.0, 0.0, 1.0, *[-1.0] * 20])
    inputs = [entry(seed, **params) for seed in range(200)]

    assert set(draws(way, scores.repeat(200, 1), inputs)) == {1, 2, 3, 4, 5, 7}


@pytest.mark.parametrize("way", WAYS)
def test_the_last_draw_takes_the_last_token_that_stays(
    way: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("furiosa_llm.execution.token_draws.uniform", lambda *_: 1.0)
    scores = torch.full((1, 1500), float("-inf"))
    scores[0, [3, 700]] = 1.0

    assert draws(way, scores, [entry(0)]) == [700]


@pytest.mark.parametrize("way", WAYS)
def test_the_smallest_draw_takes_the_first_token_that_stays(
    way: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("furiosa_llm.execution.token_draws.uniform", lambda *_: 2.0**-53)
    scores = torch.full((1, 1500), float("-inf"))
    scores[0, [3, 700]] = 1.0

    assert draws(way, scores, [entry(0, top_p=0.9)]) == [3]


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("params", [{}, {"top_k": 3}, {"top_p": 0.8}, {"min_p": 0.5}], ids=str)
def test_a_row_without_finite_scores_gets_some_token(params: dict[str, Any], bad: float) -> None:
    logits = torch.full((3, 900), float("-inf"))
    logits[0] = bad
    logits[1, 800] = bad
    logits[2, 5] = 1.0

    chosen = draws("kernel", logits, [entry(seed, **params) for seed in range(3)])

    assert all(0 <= token < 900 for token in chosen)
    assert chosen[2] == 5
