from __future__ import annotations

import datetime
import decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from furiosa_llm.dataset.json_text import parse_json, to_json
from tests.unit.dataset.dataset_factories import run_python

CASES = r"""
import sys
sys.modules["orjson"] = None
from furiosa_llm.dataset.json_text import parse_json, to_json

for text in (b'{"a": NaN}', b"1e999", b'"\\ud800"', b"\xff", b"[" * 5000, b"[" * 150 + b"]" * 150):
    try:
        print(parse_json(text))
    except ValueError:
        print("refused")
print(parse_json('{"a": [1, 2.5, "ü", 123456789012345678901]}'.encode()))
print(to_json({"a": [1, float("nan"), b"x", (2,)]}))
"""


@given(
    st.recursive(
        st.none()
        | st.booleans()
        | st.integers()
        | st.floats(allow_nan=False, allow_infinity=False)
        | st.text(),
        lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
        max_leaves=10,
    )
)
def test_a_value_survives_writing_and_reading(value: object) -> None:
    assert parse_json(to_json(value).encode()) == value


@pytest.mark.parametrize("number", [2**64, 10**19, -(2**63) - 1, -(2**64), 10**20])
def test_a_whole_number_stays_exact_however_long(number: int) -> None:
    parsed = parse_json(f'{{"id": {number}}}'.encode())

    assert parsed == {"id": number}
    assert isinstance(parse_json(str(number).encode()), int)


def test_what_json_does_not_know_becomes_text() -> None:
    value = [datetime.date(2026, 1, 2), decimal.Decimal("1.50"), b"\xff", float("nan")]

    assert to_json(value) == '["2026-01-02","1.50","/w==",null]'


def test_a_hundred_levels_are_read_and_no_more() -> None:
    assert parse_json(b"[" * 100 + b"]" * 100)
    with pytest.raises(ValueError, match="nested more than 100 levels"):
        parse_json(b"[" * 101 + b"]" * 101)


def test_it_does_the_same_without_orjson() -> None:
    run = run_python(CASES)

    assert run.splitlines() == [
        *["refused"] * 6,
        "{'a': [1, 2.5, 'ü', 123456789012345678901]}",
        '{"a":[1,null,"eA==",[2]]}',
    ]
