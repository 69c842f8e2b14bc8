from __future__ import annotations

from array import array

import pytest

from furiosa_llm.dataset.columns import ColumnMapping
from furiosa_llm.errors import InvalidParamsError, InvalidRowError
from tests.unit.dataset.dataset_factories import DEFAULTS, parsed

CHAT = [{"role": "user", "content": "Hi"}]


def chat_line(**body: object) -> dict[str, object]:
    return {
        "custom_id": "r-1",
        "method": "POST",
        "url": "/v1/chat/completions",
        "body": {"model": "any", "messages": CHAT, **body},
    }


def completion_line(prompt: object) -> dict[str, object]:
    return {"custom_id": "r-1", "url": "/v1/completions", "body": {"prompt": prompt}}


def test_a_chat_line_gives_its_messages_and_its_id() -> None:
    record = parsed({**chat_line(), "topic": "math"})

    assert record.messages == CHAT
    assert record.request_id == "r-1"
    assert record.carried == {"topic": "math"}
    assert record.sampling_params is DEFAULTS


def test_a_completion_line_takes_text_or_tokens() -> None:
    assert parsed(completion_line("Hi")).prompt == "Hi"
    assert parsed(completion_line([1, 2])).prompt_token_ids == array("i", [1, 2])


def test_the_body_gives_the_parameters() -> None:
    line = chat_line(
        max_completion_tokens=9, temperature=0, stop="x", seed=None, user="me", top_k=3
    )

    assert parsed(line).sampling_params == DEFAULTS.updated(
        {"max_tokens": 9, "temperature": 0, "stop": "x", "top_k": 3}
    )


def test_features_that_are_switched_off_are_no_features() -> None:
    line = chat_line(stream=False, logprobs=False, tools=None, response_format={"type": "text"})

    assert parsed(line).messages == CHAT


@pytest.mark.parametrize("value", [None, False, [], {}, "none"])
def test_a_feature_that_is_not_known_may_be_switched_off(value: object) -> None:
    assert parsed(chat_line(tools=value, echo=value, tool_choice=value)).messages == CHAT


def test_what_does_not_change_the_answer_is_passed_over() -> None:
    line = chat_line(
        store=True,
        service_tier="flex",
        parallel_tool_calls=True,
        stream_options={"include_usage": True},
    )

    assert parsed(line).sampling_params is DEFAULTS


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("stream", True),
        ("tools", [{"type": "function"}]),
        ("tool_choice", "auto"),
        ("echo", 0),
        ("prompt", "Hi"),
        ("temprature", 1),
    ],
)
def test_what_is_not_supported_is_refused_by_name(key: str, value: object) -> None:
    with pytest.raises(InvalidParamsError, match=rf"body\.{key} is not supported"):
        parsed(chat_line(**{key: value}))


@pytest.mark.parametrize(
    ("body", "changes"),
    [
        ({"logprobs": True}, {"logprobs": 0}),
        ({"logprobs": True, "top_logprobs": 5}, {"logprobs": 5}),
        ({"logit_bias": {"7": -100}, "n": 2}, {"logit_bias": {7: -100.0}, "n": 2}),
        (
            {"response_format": {"type": "json_object"}},
            {"structured_outputs": {"json_object": True}},
        ),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"schema": {"type": "a"}}}},
            {"structured_outputs": {"json": {"type": "a"}}},
        ),
    ],
)
def test_a_body_says_some_things_in_words_of_its_own(
    body: dict[str, object], changes: dict[str, object]
) -> None:
    assert parsed(chat_line(**body)).sampling_params == DEFAULTS.updated(changes)


def test_a_completion_says_how_many_log_probabilities_it_wants() -> None:
    line = completion_line("Hi")
    line["body"] = {"prompt": "Hi", "logprobs": 3, "best_of": 4}

    assert parsed(line).sampling_params == DEFAULTS.updated({"logprobs": 3, "best_of": 4})


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (
            {"logprobs": 0},
            r"body\.logprobs must be true or false, got 0 .*top_logprobs",
        ),
        (
            {"top_logprobs": 3},
            r"top_logprobs needs body\.logprobs to be true, got 3",
        ),
        ({"logprobs": True, "top_logprobs": 30}, r"logprobs must be in \[0, 20\], got 30"),
        ({"response_format": {"type": "json_schema"}}, r"body\.response_format must have the type"),
    ],
)
def test_what_makes_no_sense_in_a_body_is_refused(body: dict[str, object], message: str) -> None:
    with pytest.raises(InvalidParamsError, match=message):
        parsed(chat_line(**body))


def test_two_different_lengths_are_refused() -> None:
    with pytest.raises(InvalidParamsError, match=r"max_tokens \(1\) and .* \(2\) differ"):
        parsed(chat_line(max_tokens=1, max_completion_tokens=2))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"url": "/v1/embeddings"}, "url must be /v1/chat/completions or /v1/completions"),
        ({"url": None}, "url must be"),
        ({"body": {}}, "body has no 'messages'"),
        ({"prompt": "Hi"}, "the row has 'prompt' next to 'body'"),
    ],
)
def test_a_line_that_is_no_such_request_is_refused(change: dict[str, object], message: str) -> None:
    with pytest.raises(InvalidRowError, match=message):
        parsed({**chat_line(), **change})


def test_a_list_of_prompts_is_refused() -> None:
    with pytest.raises(InvalidRowError, match=r"body\.prompt must hold whole numbers"):
        parsed(completion_line(["a", "b"]))


def test_a_template_sees_a_batch_line_as_plain_columns() -> None:
    record = parsed(chat_line(), ColumnMapping(template="{{ body.messages[0].content }}!"))

    assert record.prompt == "Hi!"
    assert list(record.carried) == ["method", "url", "body"]
