from __future__ import annotations

from dataclasses import replace

from furiosa_llm.outputs import CompletionOutput, RequestMetrics, RequestOutput
from furiosa_llm.replicas.growing_outputs import GrowingOutputs
from furiosa_llm.request import TokenizedPrompt
from furiosa_llm.sampling_params import RequestOutputKind, SamplingParams

TEXT = "abcdef"


def make_prompt(kind: RequestOutputKind) -> TokenizedPrompt:
    return TokenizedPrompt(
        request_id="r",
        text="the prompt",
        prompt_token_ids=[7, 8],
        sampling_params=SamplingParams(output_kind=kind),
        max_tokens=16,
        arrival_time=0.0,
    )


def whole(num_tokens: int, *, is_last: bool = False) -> RequestOutput:
    """What a replica sends of an answer of so many tokens, a letter each."""
    return RequestOutput(
        request_id="r",
        prompt=None,
        prompt_token_ids=[],
        outputs=[
            CompletionOutput(index=0, text=TEXT[:num_tokens], token_ids=list(range(num_tokens)))
        ],
        finished=is_last,
        num_cached_tokens=0,
        num_output_tokens=num_tokens,
        metrics=RequestMetrics(),
    )


def news(numbers: list[int]) -> list[tuple[str, list[int]]]:
    growing = GrowingOutputs()
    prompt = make_prompt(RequestOutputKind.DELTA)
    growing.add(prompt)
    outputs = [growing.output(prompt, whole(number)).outputs[0] for number in numbers]
    return [(output.text, output.token_ids) for output in outputs]


def test_a_replica_sends_answers_whole_and_the_caller_gets_what_is_new() -> None:
    given = GrowingOutputs().add(make_prompt(RequestOutputKind.DELTA))

    assert given.sampling_params.output_kind is RequestOutputKind.CUMULATIVE
    assert news([1, 3, 6]) == [("a", [0]), ("bc", [1, 2]), ("def", [3, 4, 5])]


def test_an_answer_that_starts_again_is_not_handed_out_twice() -> None:
    assert news([3, 1, 2, 5]) == [("abc", [0, 1, 2]), ("", []), ("", []), ("de", [3, 4])]


def test_answers_that_are_wanted_whole_only_get_their_prompt_back() -> None:
    growing = GrowingOutputs()
    prompt = make_prompt(RequestOutputKind.FINAL)

    assert growing.add(prompt) is prompt
    output = growing.output(prompt, whole(6, is_last=True))

    assert (output.prompt, output.prompt_token_ids) == ("the prompt", [7, 8])
    assert output.outputs[0].text == TEXT


def test_a_name_that_is_used_again_starts_from_nothing() -> None:
    growing = GrowingOutputs()
    prompt = make_prompt(RequestOutputKind.DELTA)
    for _ in range(2):
        growing.add(prompt)
        assert growing.output(prompt, whole(6, is_last=True)).outputs[0].text == TEXT


def test_text_that_came_without_a_token_is_not_handed_out_twice() -> None:
    growing = GrowingOutputs()
    prompt = make_prompt(RequestOutputKind.DELTA)
    growing.add(prompt)
    held_back = replace(whole(3), outputs=[replace(whole(3).outputs[0], text="ab")])

    texts = [growing.output(prompt, one).outputs[0].text for one in (held_back, whole(3), whole(4))]

    assert texts == ["ab", "c", "d"]
