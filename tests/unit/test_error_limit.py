from __future__ import annotations

import pytest

from furiosa_llm.error_limit import ErrorLimit


@pytest.mark.parametrize(
    ("text", "num_failed", "num_done", "is_exceeded", "stops"),
    [
        ("0", 0, 5, False, False),
        ("0", 1, 5, True, True),
        ("3", 3, 9, False, False),
        ("3", 4, 9, True, True),
        ("5%", 5, 100, False, False),
        ("5%", 6, 100, True, True),
        ("5%", 9, 99, True, False),  # too few rows to tell, until all are done
        ("0.5%", 1, 200, False, False),
        ("100%", 200, 200, False, False),
        ("0%", 1, 1000, True, True),
    ],
)
def test_a_limit_counts_rows_or_a_share_of_them(
    text: str, num_failed: int, num_done: int, is_exceeded: bool, stops: bool
) -> None:
    limit = ErrorLimit.parse(text)

    assert limit.is_exceeded(num_failed=num_failed, num_done=num_done) is is_exceeded
    assert limit.stops(num_failed=num_failed, num_done=num_done) is stops
    assert str(limit) == text


@pytest.mark.parametrize("text", ["", "%", "-1", "1.5", "101%", "five", "nan", "1e3", "5 % 5"])
def test_what_is_no_limit_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="is no limit; write a number of rows, or a share"):
        ErrorLimit.parse(text)
