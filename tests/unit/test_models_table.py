from __future__ import annotations

import re

import pytest
import torch
import transformers
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from docs.make_models_table import TABLE, render, render_row
from docs.serving_trial import Difference, Outcome, Verdict, judge, measure
from docs.tiny_checkpoints import VOCAB_SIZE, class_name, make_config, model_types

ROW = re.compile(r"^\| `(?P<model_type>[^`]+)` \| (?P<class_name>\w+) \| (?P<verdict>[^|]+) \|")


def read_rows() -> list[re.Match[str]]:
    return [row for line in TABLE.read_text().splitlines() if (row := ROW.match(line))]


def test_the_table_names_every_causal_language_model_of_its_transformers() -> None:
    if f"transformers {transformers.__version__} " not in TABLE.read_text():
        pytest.skip("docs/models.md was made with another version of transformers")

    names = {row["model_type"]: row["class_name"] for row in read_rows()}

    assert names == {name: class_name(name) for name in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES}
    assert sorted(names) == model_types()


def test_the_counts_of_the_table_are_those_of_its_rows() -> None:
    verdicts = [row["verdict"].strip() for row in read_rows()]

    for verdict in Verdict:
        assert f"- {verdicts.count(verdict.value)} {verdict.value}\n" in TABLE.read_text()


def test_the_readme_states_the_counts_of_the_table() -> None:
    verdicts = [row["verdict"].strip() for row in read_rows()]
    readme = " ".join((TABLE.parents[1] / "README.md").read_text().split())

    assert f"tries all {len(verdicts)}: {verdicts.count(Verdict.EQUAL.value)} are" in readme
    assert f"{verdicts.count(Verdict.REFUSED.value)} are refused" in readme


def test_the_table_holds_no_wrong_answer_and_no_failure() -> None:
    verdicts = {row["verdict"].strip() for row in read_rows()}

    assert not verdicts & {Verdict.DIFFERENT.value, Verdict.FAILED.value}


def test_every_refusal_gives_its_reason() -> None:
    lines = [line for line in TABLE.read_text().splitlines() if "| refused |" in line]

    assert lines
    assert not [line for line in lines if line.endswith("| refused |  |")]


def test_a_page_states_counts_and_rows() -> None:
    outcome = Outcome(
        model_type="llama", class_name="Llama", verdict=Verdict.REFUSED, note="this | that"
    )

    page = render([outcome])

    assert "- 1 refused\n" in page
    assert "- 0 served and equal\n" in page
    assert page.endswith(render_row(outcome) + "\n")
    assert "| `llama` | Llama | refused | this \\| that |" in page


@pytest.mark.parametrize("model_type", ["llama", "gpt2", "qwen3_moe", "gemma3", "whisper", "opt"])
def test_a_configuration_is_tiny_in_every_size(model_type: str) -> None:
    config = make_config(model_type).get_text_config()

    assert config.vocab_size == VOCAB_SIZE
    assert config.hidden_size <= 64
    assert config.num_hidden_layers <= 4


def test_a_tiny_model_keeps_every_kind_of_layer() -> None:
    full = transformers.Gemma3TextConfig().layer_types

    assert set(make_config("gemma3_text").layer_types) == set(full)
    assert len(make_config("gemma3_text").layer_types) == 4


def test_two_tokens_with_equal_logits_are_a_tie() -> None:
    logits = torch.tensor([[5.0, 5.0, 0.0], [0.0, 1.0, 9.0]])

    difference = measure(logits, [0, 2], [1, 2])

    assert difference.is_tie
    assert judge([difference])[0] is Verdict.EQUAL
    assert "a tie in 1 of the answers" in judge([difference])[1]


def test_a_token_with_a_smaller_logit_is_a_difference() -> None:
    logits = torch.tensor([[5.0, 4.0, 0.0], [0.0, 1.0, 10.0]])

    difference = measure(logits, [1, 2], [0, 2])

    assert (difference.gap, difference.choice_gap) == (0.1, 0.1)
    assert judge([difference])[0] is Verdict.DIFFERENT


def test_a_wrong_token_after_a_tie_is_a_difference() -> None:
    logits = torch.tensor([[5.0, 5.0, 0.0], [0.0, 1.0, 10.0]])

    difference = measure(logits, [0, 1], [1, 2])

    assert not difference.is_tie


def test_one_tie_does_not_excuse_another_answer() -> None:
    assert judge([Difference(0.0, 0.0), Difference(0.5, 0.5)])[0] is Verdict.DIFFERENT
