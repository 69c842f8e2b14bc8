from __future__ import annotations

import pytest

from benchmarks.figures import Spread, matrix_shares, spread, times_as_fast


def test_a_spread_is_the_middle_and_the_ends() -> None:
    assert spread([3.0, 9.0, 1.0]) == Spread(median=3.0, lowest=1.0, highest=9.0)


def test_ours_is_twice_as_fast_where_the_other_takes_twice_as_long() -> None:
    assert times_as_fast([10.0, 5.0], [20.0, 2.5]) == [2.0, 0.5]


def test_ratios_are_of_the_rounds_that_both_ran() -> None:
    assert times_as_fast([10.0, 5.0, 4.0], [20.0]) == [2.0]


def test_a_share_is_of_the_matrix_rate_of_the_same_round() -> None:
    shares = matrix_shares(2e11, [1.0, 4.0], [400.0, 100.0])

    assert shares == pytest.approx([0.5, 0.5])
