from __future__ import annotations

import string
from array import array

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from furiosa_llm.dataset.columns import ColumnMapping
from furiosa_llm.dataset.record import PromptRecord, RawRow, identify, parse_row
from furiosa_llm.errors import InvalidParamsError, InvalidRowError, RequestError
from tests.unit.dataset.dataset_factories import DEFAULTS, parsed


def test_a_text_prompt_is_kept_as_it_is() -> None:
    record = parsed({"prompt": " Hi\n"})

    assert (record.prompt, record.messages, record.prompt_token_ids) == (" Hi\n", None, None)


def test_a_row_without_parameters_shares_the_default_object() -> None:
    assert parsed({"prompt": "Hi", "temperature": None}).sampling_params is DEFAULTS


def test_the_row_index_is_the_request_id_if_the_row_has_none() -> None:
    assert parsed({"prompt": "Hi", "id": None}).request_id == "3"


@pytest.mark.parametrize(
    ("columns", "request_id"),
    [
        ({"id": "a"}, "a"),
        ({"id": 17}, "17"),
        ({"id": 17.0}, "17"),
        ({"id": -(2.0**53)}, "-9007199254740992"),
        ({"custom_id": "b"}, "b"),
        ({"id": "a", "custom_id": "b"}, "a"),
        ({"id": ""}, ""),
    ],
)
def test_the_row_names_its_request(columns: dict[str, object], request_id: str) -> None:
    assert parsed({"prompt": "Hi", **columns}).request_id == request_id


def test_an_id_that_is_not_used_is_carried() -> None:
    assert parsed({"prompt": "Hi", "id": "a", "custom_id": "b"}).carried == {"custom_id": "b"}


@pytest.mark.parametrize("wrong", [True, 1.5, 2.0**54, float("nan"), float("inf"), [1], {"a": 1}])
def test_an_id_of_another_type_is_refused(wrong: object) -> None:
    with pytest.raises(InvalidRowError, match="id must be text or a whole number"):
        parsed({"prompt": "Hi", "id": wrong})


def test_a_row_without_a_prompt_says_what_was_looked_for_and_what_is_there() -> None:
    with pytest.raises(InvalidRowError) as caught:
        parsed({"question": "Hi", "answer": None})

    assert str(caught.value) == (
        "the row has no prompt: looked for 'prompt', 'messages', 'prompt_token_ids', but its "
        "columns are 'question', 'answer'; name the prompt's column with --prompt-column or "
        "--template"
    )


@pytest.mark.parametrize(
    ("columns", "problem"),
    [
        (["prompt_token_ids"], "'prompt_token_ids' is null"),
        (["k", "messages", "prompt"], "'prompt', 'messages' are null"),
    ],
)
def test_a_prompt_that_is_null_is_named(columns: list[str], problem: str) -> None:
    with pytest.raises(InvalidRowError, match=f"^the row has no prompt: {problem}$"):
        parsed(dict.fromkeys(columns))


def test_a_prompt_column_of_another_name_that_is_null_is_named() -> None:
    with pytest.raises(InvalidRowError, match=r"^the row has no prompt: 'question' is null$"):
        parsed({"question": None}, ColumnMapping(prompt_column="question"))


def test_a_row_with_two_prompts_is_refused() -> None:
    with pytest.raises(InvalidRowError, match="'prompt', 'prompt_token_ids'; a row may have only"):
        parsed({"prompt": "Hi", "prompt_token_ids": [1]})


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"prompt": ""}, "prompt is empty"),
        ({"prompt": 5}, r"prompt must be text, got 5 \(int\)"),
        ({"prompt": ["a"]}, "prompt must be text"),
        ({"messages": []}, "messages is empty"),
        ({"messages": "Hi"}, "messages must be a list"),
        ({"messages": ["Hi"]}, r"messages\[0\] must be an object"),
        ({"messages": [{"content": "Hi"}]}, r"messages\[0\].role must be text, got None"),
        ({"messages": [{"role": "user"}]}, r"messages\[0\].content must be text or a list"),
        ({"messages": [{"role": "user", "content": 5}]}, "content must be text or a list"),
        ({"messages": [{"role": "user", "content": ["a"]}]}, r"content\[0\] must be an object"),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url"}]}]},
            "type must be 'text', got 'image_url'",
        ),
        ({"messages": [{"role": "user", "content": [{"type": "text"}]}]}, "text must be text"),
        ({"prompt_token_ids": []}, "prompt_token_ids is empty"),
        ({"prompt_token_ids": "1 2"}, "must be a list of token ids"),
        ({"prompt_token_ids": [1, True]}, r"got True \(bool\)"),
        ({"prompt_token_ids": [1, 2.0]}, r"got 2.0 \(float\)"),
        ({"prompt_token_ids": [1, -1]}, r"got -1 \(int\)"),
        ({"prompt_token_ids": [2**31]}, "whole numbers from 0 to 2147483647"),
        ({"prompt_token_ids": [None]}, "NoneType"),
    ],
)
def test_a_damaged_prompt_is_refused(data: dict[str, object], message: str) -> None:
    with pytest.raises(InvalidRowError, match=message):
        parsed(data)


def test_a_wrong_value_is_shown_shortened() -> None:
    with pytest.raises(InvalidRowError) as caught:
        parsed({"prompt": ["x" * 1000]})

    assert len(str(caught.value)) < 150


def test_text_parts_of_a_message_are_joined() -> None:
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]

    record = parsed({"messages": [{"role": "user", "content": parts}]})

    assert record.messages == [{"role": "user", "content": "ab"}]


def test_only_an_assistant_may_have_no_content() -> None:
    record = parsed({"messages": [{"role": "assistant", "tool_calls": [1], "name": None}]})

    assert record.messages == [{"role": "assistant", "tool_calls": [1], "content": None}]


def test_token_ids_take_four_bytes_each() -> None:
    assert parsed({"prompt_token_ids": [5, 2**31 - 1]}).prompt_token_ids == array(
        "i", [5, 2**31 - 1]
    )


def test_parameters_override_the_defaults_and_the_object_wins() -> None:
    record = parsed(
        {"prompt": "Hi", "top_k": 5, "seed": 1, "sampling_params": {"seed": 2, "stop": None}}
    )

    assert record.sampling_params == DEFAULTS.updated({"top_k": 5, "seed": 2})
    assert record.carried == {}


def test_an_unknown_parameter_in_the_object_is_refused() -> None:
    with pytest.raises(InvalidParamsError, match="unknown sampling parameter 'temprature'"):
        parsed({"prompt": "Hi", "sampling_params": {"temprature": 1}})


@pytest.mark.parametrize("wrong", [{"n": "many"}, {"top_p": 2}, {"sampling_params": [1]}])
def test_a_parameter_that_makes_no_sense_is_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(InvalidParamsError):
        parsed({"prompt": "Hi", **wrong})


def test_other_columns_are_carried_in_order() -> None:
    record = parsed({"z": 1, "prompt": "Hi", "a": None, "temprature": 2})

    assert list(record.carried.items()) == [("z", 1), ("a", None), ("temprature", 2)]


def test_a_row_that_could_not_be_read_gives_its_own_error() -> None:
    with pytest.raises(InvalidRowError, match=r"^x\.jsonl:7: not valid JSON$"):
        parse_row(RawRow(0, None, "x.jsonl:7: not valid JSON"), ColumnMapping(), DEFAULTS)


def test_a_refused_row_keeps_its_id_and_columns() -> None:
    assert identify(RawRow(4, {"id": "a", "prompt": 5, "k": 1}), ColumnMapping()) == ("a", {"k": 1})
    assert identify(RawRow(4, {"id": [], "prompt": 5}), ColumnMapping()) == ("4", {"id": []})
    assert identify(RawRow(4, None, "damaged"), ColumnMapping()) == ("4", {})


JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["role", "content", "type", "text", "n"]), inner)
    ),
    max_leaves=8,
)
NAMES = st.sampled_from(
    [
        "prompt", "messages", "prompt_token_ids", "id", "custom_id", "method", "url", "body",
        "sampling_params", "temperature", "n", "stop", "seed", "stop_token_ids", "max_tokens",
    ]
) | st.text(string.printable, max_size=3)  # fmt: skip
MAPPINGS = (
    ColumnMapping(),
    ColumnMapping(prompt_column="body", params_column="n"),
    ColumnMapping(template="{{ prompt.role }}{{ 1 / n }}{{ id[0] + stop }}"),
)


@settings(max_examples=150)
@given(st.dictionaries(NAMES, JSON_VALUES, max_size=6), st.sampled_from(MAPPINGS))
def test_any_object_is_a_prompt_or_an_error_of_that_row(
    data: dict[str, object], columns: ColumnMapping
) -> None:
    row = RawRow(0, data)
    try:
        record = parse_row(row, columns, DEFAULTS)
    except RequestError:
        identify(row, columns)
    else:
        assert isinstance(record, PromptRecord)
        given_forms = (record.prompt, record.messages, record.prompt_token_ids)
        assert sum(form is not None for form in given_forms) == 1
        assert identify(row, columns) == (record.request_id, record.carried)
