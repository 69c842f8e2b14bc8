from __future__ import annotations

import dataclasses
from typing import cast

import pytest

from furiosa_llm.errors import PromptFailedError
from furiosa_llm.output_processor import OutputProcessor
from furiosa_llm.request import FinishReason, RequestStatus
from furiosa_llm.sampling_params import SamplingParams
from furiosa_llm.scheduler_output import TokenLogprobs
from furiosa_llm.tokenization import Tokenizer
from tests.factories import make_request


class Letters:
    """A tokenizer whose tokens are letters."""

    def decode(self, token_ids: list[int], *, skip_special_tokens: bool) -> str:
        del skip_special_tokens
        return "".join(map(chr, token_ids))


def make_processor() -> OutputProcessor:
    return OutputProcessor(cast(Tokenizer, Letters()))


def test_a_prompt_never_takes_the_place_of_another() -> None:
    processor = make_processor()
    processor.add(None, [make_request(0)])

    with pytest.raises(AssertionError, match="is unfinished"):
        processor.add(None, [make_request(1)])


def test_a_stop_string_may_end_with_the_last_of_the_min_tokens() -> None:
    processor = make_processor()
    request = make_request(params=SamplingParams(stop=("ab",), min_tokens=2))
    processor.add(None, [request])

    found = []
    for letter in "ab":
        request.output_token_ids.append(ord(letter))
        found.append(processor.read(request))

    assert found == [None, "ab"]


def test_an_answer_that_failed_is_never_the_best_though_its_tokens_count() -> None:
    processor = make_processor()
    params = SamplingParams(temperature=1.0, n=1, best_of=2)
    requests = [dataclasses.replace(make_request(i, params=params), index=i) for i in range(2)]
    processor.add(None, requests)
    for request, letter in zip(requests, "ab", strict=True):
        request.output_token_ids.append(ord(letter))
        request.status, request.finish_reason = RequestStatus.FINISHED, FinishReason.LENGTH
    requests[0].error = PromptFailedError("broken")
    entry = TokenLogprobs(
        token_id=ord("b"), logprob=-3.0, rank=1, top_token_ids=(), top_logprobs=()
    )
    processor.read(requests[1], entry)

    (output,) = processor.outputs(requests)

    assert [answer.text for answer in output.outputs] == ["b"]
    assert output.error is None
    assert output.num_output_tokens == 2
