from __future__ import annotations

import pytest

from furiosa_llm.scheduling.answer_lengths import AnswerLengths


def lengths_of(*answers: tuple[int, int]) -> AnswerLengths:
    lengths = AnswerLengths()
    for num_tokens, max_tokens in answers:
        lengths.learn(num_tokens, max_tokens)
    return lengths


@pytest.mark.parametrize(
    ("num_tokens", "max_tokens", "expected"),
    [(0, 100, 100), (90, 100, 10), (0, 4000, 256), (300, 4000, 300), (3900, 4000, 100)],
)
def test_an_answer_of_which_nothing_is_known_may_become_twice_as_long(
    num_tokens: int, max_tokens: int, expected: int
) -> None:
    assert AnswerLengths().expected_tokens_left(num_tokens, max_tokens) == expected


def test_an_answer_is_expected_to_end_like_those_that_were_longer() -> None:
    lengths = lengths_of((10, 100), (40, 100), (120, 200))

    assert lengths.expected_tokens_left(20, 100) == 51 - 20  # the mean of 40 and 60 %, and one
    assert lengths.expected_tokens_left(50, 100) == 61 - 50
    assert lengths.expected_tokens_left(70, 100) == 30


def test_answers_that_all_ran_to_their_limit_are_expected_to_do_so() -> None:
    lengths = lengths_of((100, 100), (200, 200))

    assert lengths.expected_tokens_left(0, 4000) == 4000


def test_what_answers_were_long_ago_is_forgotten() -> None:
    lengths = lengths_of(*[(100, 100)] * 300, *[(10, 100)] * 256)

    assert lengths.expected_tokens_left(0, 1000) == 101
