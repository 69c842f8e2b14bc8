from __future__ import annotations

from array import array

import pytest

from furiosa_llm.dataset.columns import ColumnMapping
from furiosa_llm.errors import ConfigError, InvalidRowError
from tests.unit.dataset.dataset_factories import DEFAULTS, parsed


def test_the_prompt_may_be_in_another_column() -> None:
    record = parsed({"question": "Hi", "prompt": "other"}, ColumnMapping(prompt_column="question"))

    assert record.prompt == "Hi"
    assert record.carried == {"prompt": "other"}


def test_another_column_may_hold_a_chat_or_tokens() -> None:
    columns = ColumnMapping(prompt_column="q")
    chat = [{"role": "user", "content": "Hi"}]

    assert parsed({"q": chat}, columns).messages == chat
    assert parsed({"q": [4]}, columns).prompt_token_ids == array("i", [4])


def test_a_row_without_that_column_is_refused() -> None:
    with pytest.raises(InvalidRowError, match="looked for 'q', but its columns are 'prompt'"):
        parsed({"prompt": "Hi"}, ColumnMapping(prompt_column="q"))


def test_the_parameters_may_be_in_another_column() -> None:
    record = parsed(
        {"prompt": "Hi", "how": {"top_k": 2}, "sampling_params": 5},
        ColumnMapping(params_column="how"),
    )

    assert record.sampling_params == DEFAULTS.updated({"top_k": 2})
    assert record.carried == {"sampling_params": 5}


def test_a_template_makes_the_prompt_from_all_columns() -> None:
    columns = ColumnMapping(template="{{ name }} & {{ row['my n'] }}\n")

    record = parsed({"name": "<b>", "my n": 2}, columns)

    assert record.prompt == "<b> & 2\n"
    assert record.carried == {"name": "<b>", "my n": 2}


@pytest.mark.parametrize(
    "template",
    [
        "{{ missing }}",
        "{{ 1 / zero }}",
        "{{ zero.__class__.__mro__ }}",
        "{{ names.append(1) }}",
        "{% for i in range(10000000) %}x{% endfor %}",
        "{{ zero + 'a' }}",
        "{% if zero %}never{% endif %}",
    ],
)
def test_a_template_that_fails_is_an_error_of_that_row(template: str) -> None:
    with pytest.raises(InvalidRowError, match="template"):
        parsed({"zero": 0, "names": []}, ColumnMapping(template=template))


def test_a_template_that_cannot_be_parsed_is_an_error_of_the_run() -> None:
    with pytest.raises(ConfigError, match=r"--template cannot be parsed: line 2: "):
        ColumnMapping(template="a\n{{ b")


def test_a_template_and_a_prompt_column_exclude_each_other() -> None:
    with pytest.raises(ConfigError, match="both make the prompt"):
        ColumnMapping(template="a", prompt_column="b")
