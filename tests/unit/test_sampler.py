from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
import torch
from transformers.generation import logits_process

from furiosa_llm.execution.random_draws import stream_seed, uniform
from furiosa_llm.execution.sampler import NO_TOKEN, sample
from furiosa_llm.sampling_params import SamplingParams
from furiosa_llm.scheduler_output import SamplingInputs

VOCAB_SIZE = 50
VOCAB_SIZE_OF_TIES = 2000  # where the order of equal scores varies


def inputs(position: int = 0, seed: int = 1, **params: Any) -> SamplingInputs:
    return SamplingInputs(
        params=SamplingParams(**params), seed=stream_seed(seed), position=position
    )


def distribution(logits: torch.Tensor, count: int = 4000, **params: Any) -> torch.Tensor:
    """How often each token comes up in many draws."""
    rows = [inputs(position, **params) for position in range(count)]
    drawn = Counter(sample(logits.repeat(count, 1), rows).tolist())
    return torch.tensor([drawn[token] / count for token in range(logits.shape[-1])])


def make_logits(seed: int = 0) -> torch.Tensor:
    return torch.randn(1, VOCAB_SIZE, generator=torch.Generator().manual_seed(seed)) * 2


def test_greedy_takes_the_likeliest_token() -> None:
    logits = torch.tensor([[0.0, 3.0, 1.0], [5.0, 3.0, 1.0]])

    assert sample(logits, [inputs(temperature=0), inputs(top_k=1)]).tolist() == [1, 0]


@pytest.mark.parametrize(
    ("params", "warpers"),
    [
        ({"temperature": 0.7}, [logits_process.TemperatureLogitsWarper(0.7)]),
        ({"top_k": 5}, [logits_process.TopKLogitsWarper(5)]),
        ({"top_p": 0.6}, [logits_process.TopPLogitsWarper(0.6)]),
        (
            {"top_k": 4, "top_p": 0.9},
            [logits_process.TopKLogitsWarper(4), logits_process.TopPLogitsWarper(0.9)],
        ),
        ({"min_p": 0.2}, [logits_process.MinPLogitsWarper(0.2)]),
        (
            {"temperature": 1.5, "top_k": 20, "top_p": 0.8, "min_p": 0.05},
            [
                logits_process.TemperatureLogitsWarper(1.5),
                logits_process.TopKLogitsWarper(20),
                logits_process.TopPLogitsWarper(0.8),
                logits_process.MinPLogitsWarper(0.05),
            ],
        ),
    ],
)
def test_draws_follow_the_distribution_that_transformers_would_draw_from(
    params: dict[str, Any], warpers: list[Any]
) -> None:
    logits = make_logits()
    expected = logits
    for warper in warpers:
        expected = warper(torch.zeros(1, 0), expected)
    probabilities = expected.softmax(-1)[0]

    drawn = distribution(logits, **params)

    assert set(drawn.nonzero()[:, 0].tolist()) <= set(probabilities.nonzero()[:, 0].tolist())
    # Five standard deviations of a share of 4,000 draws.
    bound = 5 * (probabilities * (1 - probabilities) / 4000).sqrt() + 1e-3
    assert ((drawn - probabilities).abs() <= bound).all()


def test_a_row_does_not_depend_on_the_rows_beside_it() -> None:
    rows = [
        inputs(temperature=0.9),
        inputs(temperature=1.1, top_k=7),
        inputs(temperature=0),
        inputs(temperature=0.8, top_p=0.7),
        inputs(temperature=1.0, top_k=30, top_p=0.9),
    ]
    logits = torch.cat([make_logits(seed) for seed in range(len(rows))])

    together = sample(logits.clone(), rows)
    alone = [sample(logits[i : i + 1].clone(), [row]) for i, row in enumerate(rows)]

    assert torch.equal(together, torch.cat(alone))


@pytest.mark.parametrize("beside", [3, 50, 200, VOCAB_SIZE_OF_TIES])
def test_of_equal_scores_a_row_draws_the_same_whatever_is_beside_it(beside: int) -> None:
    logits = (
        torch.randint(0, 40, (100, VOCAB_SIZE_OF_TIES), generator=torch.Generator().manual_seed(0))
        / 8
    )
    for position, row in enumerate(logits):
        own, other = inputs(position, top_k=5), inputs(position, top_k=beside)

        alone = sample(row[None].clone(), [own])
        together = sample(row.repeat(2, 1), [own, other])

        assert together[0] == alone[0]


def test_repetition_penalty_is_that_of_transformers() -> None:
    logits = make_logits()
    prompt, answer = (3, 4, 4), (7, 3)
    entry = SamplingInputs(
        params=SamplingParams(temperature=0, repetition_penalty=1.9),
        seed=0,
        position=2,
        prompt_token_ids=prompt,
        output_token_ids=answer,
    )
    expected = logits_process.RepetitionPenaltyLogitsProcessor(1.9)(
        torch.tensor([[*prompt, *answer]]), logits.clone()
    )

    penalised = logits.clone()
    assert torch.equal(sample(penalised, [entry]), expected.argmax(-1))
    torch.testing.assert_close(penalised, expected)


def test_presence_and_frequency_penalties_count_the_answer_only() -> None:
    logits = torch.zeros(1, 4)
    entry = SamplingInputs(
        params=SamplingParams(temperature=0, presence_penalty=0.5, frequency_penalty=0.25),
        seed=0,
        position=3,
        prompt_token_ids=(0,),
        output_token_ids=(1, 1, 2),
    )

    sample(logits, [entry])

    assert logits.tolist() == [[0.0, -1.0, -0.75, 0.0]]


def test_a_suppressed_token_is_never_chosen() -> None:
    entry = inputs(temperature=0)._replace(suppressed_token_ids=(1, VOCAB_SIZE + 5))

    assert sample(torch.tensor([[0.0, 3.0, 1.0]]), [entry]).tolist() == [2]


def test_a_bias_is_added_after_the_penalties() -> None:
    logits = torch.tensor([[2.0, 3.0, 1.0], [0.0, 0.0, 0.0]])
    entry = SamplingInputs(
        params=SamplingParams(
            temperature=0, repetition_penalty=2.0, logit_bias={0: 0.5, 1: -100, 2: 100}
        ),
        seed=0,
        position=1,
        prompt_token_ids=(0,),
    )

    assert sample(logits, [entry, inputs(temperature=0)]).tolist() == [2, 0]
    assert logits.tolist() == [[1.5, -97.0, 101.0], [0.0, 0.0, 0.0]]


def test_a_forbidden_token_is_never_chosen() -> None:
    forbidden = torch.tensor([False, True, False])
    logits = torch.tensor([[0.0, 3.0, 1.0], [0.0, 3.0, 1.0]])

    assert sample(logits, [inputs(temperature=0)] * 2, {1: forbidden}).tolist() == [1, 2]


@pytest.mark.parametrize(
    "params", [{"temperature": 0}, {"temperature": 0.9}, {"top_k": 3}, {"top_p": 0.8}], ids=str
)
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_row_with_a_score_that_is_no_number_has_no_token_and_harms_no_other(
    params: dict[str, Any], bad: float
) -> None:
    logits = torch.cat([make_logits(seed) for seed in range(4)])
    logits[3, :40] = float("-inf")  # as some models hide the tokens that they do not use
    rows = [inputs(**params)] * 4
    expected = sample(logits.clone(), rows).tolist()
    logits[0, 17] = bad
    logits[2] = float("-inf")

    assert sample(logits, rows).tolist() == [NO_TOKEN, expected[1], NO_TOKEN, expected[3]]
    assert expected[3] != NO_TOKEN


def test_draws_are_uniform_and_differ_between_streams_and_positions() -> None:
    draws = [uniform(stream_seed(stream), i) for stream in range(50) for i in range(100)]

    assert len(set(draws)) == len(draws)
    assert all(0 < draw <= 1 for draw in draws)
    buckets = Counter(int(draw * 9.999) for draw in draws)
    assert all(400 < buckets[bucket] < 600 for bucket in range(10))
