"""Puts a replica's outputs into the form that the caller asked for."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from dataclasses import dataclass, field

from furiosa_llm.outputs import CompletionOutput, RequestOutput
from furiosa_llm.request import TokenizedPrompt
from furiosa_llm.sampling_params import RequestOutputKind


@dataclass(slots=True)
class _HandedOut:
    """What a caller has of a prompt's answers."""

    completions: dict[int, CompletionOutput] = field(default_factory=dict)  # by index, whole
    has_prompt_logprobs: bool = False


class GrowingOutputs:
    """What has been handed out of answers whose caller wants only what is new.

    Replicas send such answers whole, since one that dies leaves another to start from scratch:
    the caller must not see the beginning twice.
    """

    def __init__(self) -> None:
        self._handed_out: dict[str, _HandedOut] = {}

    def add(self, prompt: TokenizedPrompt) -> TokenizedPrompt:
        """Returns the prompt as a replica gets it."""
        params = prompt.sampling_params
        if params.output_kind is not RequestOutputKind.DELTA:
            return prompt
        self._handed_out[prompt.request_id] = _HandedOut()
        whole = dataclasses.replace(params, output_kind=RequestOutputKind.CUMULATIVE)
        return dataclasses.replace(prompt, sampling_params=whole)

    def remove(self, request_ids: Iterable[str]) -> None:
        """Forgets prompts."""
        for name in request_ids:
            self._handed_out.pop(name, None)

    def output(self, prompt: TokenizedPrompt, output: RequestOutput) -> RequestOutput:
        """Returns a replica's output with its prompt, and only what is new if that was asked."""
        output = dataclasses.replace(
            output, prompt=prompt.text, prompt_token_ids=list(prompt.prompt_token_ids)
        )
        handed_out = self._handed_out.get(prompt.request_id)
        if handed_out is None:
            return output
        if output.finished:
            del self._handed_out[prompt.request_id]
        return _news(output, handed_out)


def _news(output: RequestOutput, handed_out: _HandedOut) -> RequestOutput:
    """Returns what was not handed out before, and books it."""
    prompt_logprobs = None if handed_out.has_prompt_logprobs else output.prompt_logprobs
    handed_out.has_prompt_logprobs |= prompt_logprobs is not None
    completions = []
    for whole in output.outputs:
        before = handed_out.completions.get(whole.index)
        completions.append(whole if before is None else _cut(whole, before))
        if before is None or _length(whole) > _length(before):
            handed_out.completions[whole.index] = whole
    return dataclasses.replace(output, outputs=completions, prompt_logprobs=prompt_logprobs)


def _length(completion: CompletionOutput) -> tuple[int, int]:
    # The last output may hold more text for the same tokens: what a stop string held back.
    return len(completion.token_ids), len(completion.text)


def _cut(whole: CompletionOutput, before: CompletionOutput) -> CompletionOutput:
    """Returns what an answer has that it did not have before."""
    num_tokens = len(before.token_ids)
    return dataclasses.replace(
        whole,
        text=whole.text[len(before.text) :],
        token_ids=whole.token_ids[num_tokens:],
        logprobs=None if whole.logprobs is None else whole.logprobs[num_tokens:],
    )
