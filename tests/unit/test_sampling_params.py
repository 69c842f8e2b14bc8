from __future__ import annotations

import contextlib
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from furiosa_llm.errors import InvalidParamsError
from furiosa_llm.sampling_params import PARAMETER_NAMES, SamplingParams

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner),
    max_leaves=5,
)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"temperature": -1}, "temperature must be at least 0, got -1"),
        ({"temperature": float("nan")}, "temperature must be a finite number, got nan"),
        ({"temperature": "hot"}, "temperature must be a finite number, got 'hot'"),
        ({"temperature": True}, "temperature must be a finite number, got True"),
        ({"top_p": 0}, r"top_p must be in \(0, 1\], got 0"),
        ({"top_k": -2}, "top_k must be at least 1, or -1 for all tokens, got -2"),
        ({"top_k": 2.5}, "top_k must be a whole number, got 2.5"),
        ({"max_tokens": 0}, "max_tokens must be at least 1, got 0"),
        ({"max_tokens": 10**30}, "max_tokens must be a whole number or null"),
        ({"min_tokens": 20}, r"min_tokens must be at most max_tokens \(16\), got 20"),
        ({"n": 0}, "n must be in"),
        ({"stop": ""}, "stop must be a text or a list of texts, none of them empty"),
        ({"stop": 7}, "stop must be a list, got 7"),
        ({"stop": ["a"] * 65}, "stop must be at most 64 strings"),
        ({"stop_token_ids": [-1]}, "stop_token_ids must be a list of token ids"),
        ({"ignore_eos": 1}, "ignore_eos must be true or false, got 1"),
        ({"repetition_penalty": 0}, "repetition_penalty must be in"),
        ({"heat": 1}, "unknown sampling parameter 'heat'; known are frequency_penalty"),
    ],
)
def test_a_value_that_makes_no_sense_is_refused_by_name(
    changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(InvalidParamsError, match=message):
        SamplingParams().updated(changes)


def test_a_whole_number_may_come_as_a_float_as_tables_store_it() -> None:
    params = SamplingParams().updated({"max_tokens": 3.0, "top_k": 5.0})

    assert (params.max_tokens, params.top_k) == (3, 5)
    assert isinstance(params.max_tokens, int)


def test_one_stop_string_may_stand_without_a_list() -> None:
    assert SamplingParams().updated({"stop": "end"}).stop == ("end",)


def test_nothing_to_change_gives_the_same_object() -> None:
    params = SamplingParams()

    assert params.updated({}) is params


@given(st.dictionaries(st.sampled_from(sorted(PARAMETER_NAMES)), JSON, max_size=4))
def test_any_values_are_taken_or_refused_and_nothing_else_happens(
    changes: dict[str, object],
) -> None:
    with contextlib.suppress(InvalidParamsError):
        params = SamplingParams().updated(changes)
        assert hash(params) == hash(params.updated({}))
