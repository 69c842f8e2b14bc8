from __future__ import annotations

import pytest

from furiosa_llm.outputs import RequestMetrics, RequestOutput
from furiosa_llm.replicas.prompt_names import PromptNames
from furiosa_llm.request import TokenizedPrompt
from furiosa_llm.sampling_params import SamplingParams


def make_prompt(name: str) -> TokenizedPrompt:
    return TokenizedPrompt(
        request_id=name,
        text=None,
        prompt_token_ids=[7, 8],
        sampling_params=SamplingParams(),
        max_tokens=16,
        arrival_time=0.0,
    )


def make_output(name: str, *, finished: bool) -> RequestOutput:
    return RequestOutput(
        request_id=name,
        prompt=None,
        prompt_token_ids=[],
        outputs=[],
        finished=finished,
        num_cached_tokens=0,
        num_output_tokens=0,
        metrics=RequestMetrics(),
    )


def test_a_name_that_is_used_again_is_another_prompt() -> None:
    names = PromptNames()
    first = names.add(make_prompt("a"))
    removed = names.remove(["a", "unknown"])
    second = names.add(make_prompt("a"))

    assert removed == {first.request_id}
    assert second.request_id != first.request_id
    assert names.given([second.request_id]) == ["a"]
    assert len(names) == 1


def test_random_draws_depend_on_the_callers_name() -> None:
    assert PromptNames().add(make_prompt("a")).seed_name == make_prompt("a").seed_name == "a"


def test_a_prompt_is_forgotten_with_its_last_output() -> None:
    names = PromptNames()
    own = [names.add(make_prompt(name)).request_id for name in ("a", "b")]

    outputs = names.outputs(
        [
            make_output(own[1], finished=False),
            make_output(own[0], finished=False),
            make_output(own[1], finished=True),
        ]
    )

    assert [output.request_id for output in outputs] == ["b", "a", "b"]
    assert "a" in names
    assert "b" not in names


def test_a_name_cannot_be_that_of_two_unfinished_prompts() -> None:
    names = PromptNames()
    names.add(make_prompt("a"))

    with pytest.raises(AssertionError, match="'a' is unfinished"):
        names.add(make_prompt("a"))
