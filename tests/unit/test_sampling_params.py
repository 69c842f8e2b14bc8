from __future__ import annotations

import contextlib
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from furiosa_llm.errors import InvalidParamsError
from furiosa_llm.sampling_params import PARAMETER_NAMES, RequestOutputKind, SamplingParams
from furiosa_llm.structured_outputs import StructuredOutputs

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner),
    max_leaves=5,
)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"temperature": -1}, r"temperature must be in \[0, 1000000\], got -1"),
        ({"temperature": float("nan")}, "temperature must be a finite number, got nan"),
        ({"temperature": "hot"}, "temperature must be a finite number, got 'hot'"),
        ({"temperature": True}, "temperature must be a finite number, got True"),
        ({"top_p": 0}, r"top_p must be in \(0, 1\], got 0"),
        ({"top_k": -2}, "top_k must be at least 1, or -1 or 0 for all tokens, got -2"),
        ({"top_k": 2.5}, "top_k must be a whole number, got 2.5"),
        ({"max_tokens": 0}, "max_tokens must be at least 1, got 0"),
        ({"max_tokens": 10**30}, "max_tokens must be a whole number of at most 63 bits or null"),
        ({"min_tokens": 20}, r"min_tokens must be at most max_tokens \(16\), got 20"),
        ({"n": 0}, "n must be in"),
        ({"stop": ""}, "stop must be a text or a list of texts, none of them empty"),
        ({"stop": 7}, "stop must be a list, got 7"),
        ({"stop": ["a"] * 65}, "stop must be at most 64 strings"),
        ({"stop_token_ids": [-1]}, "stop_token_ids must be a list of token ids"),
        ({"ignore_eos": 1}, "ignore_eos must be true or false, got 1"),
        ({"repetition_penalty": 0}, "repetition_penalty must be in"),
        ({"heat": 1}, "unknown sampling parameter 'heat'; known are best_of, early_stopping"),
        ({"n": 3, "best_of": 2, "temperature": 1}, r"best_of must be at least n \(3\), got 2"),
        ({"best_of": 2, "temperature": 0}, "best_of must be 1 when using greedy sampling, got 2"),
        ({"best_of": 2, "top_k": 1}, "best_of must be 1 when using greedy sampling, got 2"),
        ({"best_of": 1025}, r"best_of must be in \[1, 1024\], got 1025"),
        ({"logprobs": 21}, r"logprobs must be in \[0, 20\], got 21"),
        ({"logprobs": True}, "logprobs must be a whole number or null, got True"),
        ({"prompt_logprobs": -1}, r"prompt_logprobs must be in \[0, 20\], got -1"),
        ({"logit_bias": {"5": 101}}, r"logit_bias must be in \[-100, 100\], got 101"),
        ({"logit_bias": {"five": 1}}, "logit_bias has 'five', which is no token id"),
        ({"logit_bias": {-1: 1}}, "logit_bias has -1, which is no token id"),
        ({"logit_bias": {5: 1, "5": 2}}, "logit_bias must be given once for each token"),
        ({"logit_bias": 5}, "logit_bias must be an object of token ids and numbers, got 5"),
        ({"use_beam_search": True}, "beam search is not offered: .* set best_of"),
        ({"length_penalty": 0.5}, "length_penalty has no meaning without beam search"),
        ({"early_stopping": True}, "early_stopping has no meaning without beam search"),
        ({"structured_outputs": "a"}, "structured_outputs must be an object with one of json"),
        ({"structured_outputs": {}}, "must have exactly one of .* got none of them"),
        ({"structured_outputs": {"regex": "a", "json_object": True}}, "got json_object, regex"),
        ({"structured_outputs": {"xml": "a"}}, "structured_outputs has 'xml'; known are json"),
        ({"structured_outputs": {"choice": []}}, "structured_outputs.choice must be a list of at"),
        ({"structured_outputs": {"json": 5}}, "structured_outputs.json must be a text .* object"),
        (
            {"structured_outputs": {"regex": "a"}, "ignore_eos": True},
            "ignore_eos does not go with structured_outputs",
        ),
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


def test_a_bias_may_come_by_number_by_text_or_in_pairs_and_is_part_of_the_key() -> None:
    wanted = SamplingParams(logit_bias={7: -1.0, 12: 0.5})

    for biases in ({"12": 0.5, 7: -1}, [("12", 0.5), (7, -1.0)], {"7": -1, "12": 0.5, "9": None}):
        params = SamplingParams().updated({"logit_bias": biases})
        assert (params, hash(params)) == (wanted, hash(wanted))
    assert wanted != SamplingParams(logit_bias={7: -1.0})
    assert SamplingParams(logit_bias={}).logit_bias is None


def test_a_bias_of_a_token_outside_the_vocabulary_is_refused() -> None:
    params = SamplingParams(logit_bias={300: 1.0})

    params.check_vocabulary(301)
    with pytest.raises(InvalidParamsError, match=r"token 300, .* vocabulary of 300 tokens"):
        params.check_vocabulary(300)


def test_a_stop_token_outside_the_vocabulary_is_refused() -> None:
    params = SamplingParams(stop_token_ids=(7, 300))

    params.check_vocabulary(301)
    with pytest.raises(InvalidParamsError, match=r"stop_token_ids has token 300, .* of 300 tokens"):
        params.check_vocabulary(300)


@pytest.mark.parametrize("params", [{"temperature": 1e39}, {"repetition_penalty": 1e-40}], ids=str)
def test_numbers_that_no_score_survives_are_refused(params: dict[str, Any]) -> None:
    with pytest.raises(InvalidParamsError, match=f"{next(iter(params))} must be in"):
        SamplingParams(**params)


def test_parameters_of_beam_search_that_ask_for_nothing_are_taken() -> None:
    changes = {"use_beam_search": False, "length_penalty": 1.0, "early_stopping": False}

    assert SamplingParams().updated(changes) == SamplingParams()


def test_a_schema_may_come_as_an_object_or_as_its_text() -> None:
    schema = {"type": "object", "properties": {"b": {}, "a": {}}}
    as_object = SamplingParams().updated({"structured_outputs": {"json": schema, "regex": None}})
    as_text = SamplingParams(structured_outputs=StructuredOutputs(json=json.dumps(schema)))

    assert (as_object, hash(as_object)) == (as_text, hash(as_text))


@pytest.mark.parametrize("kind", ["all", None, []])
def test_what_is_no_output_kind_is_refused(kind: Any) -> None:
    with pytest.raises(InvalidParamsError, match="output_kind must be one of cumulative, delta, f"):
        SamplingParams(output_kind=kind)


def test_the_output_kind_may_come_by_its_name() -> None:
    params = SamplingParams(output_kind="final")  # type: ignore[arg-type]

    assert params.output_kind is RequestOutputKind.FINAL


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
