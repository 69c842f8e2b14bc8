"""Puts a replica's outputs into the form that the caller asked for."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable

from furiosa_llm.outputs import CompletionOutput, RequestOutput
from furiosa_llm.request import TokenizedPrompt
from furiosa_llm.sampling_params import RequestOutputKind


class GrowingOutputs:
    """What has been handed out of answers whose caller wants only what is new.

    Replicas send such answers whole, since one that dies leaves another to start from scratch:
    the caller must not see the beginning twice.
    """

    def __init__(self) -> None:
        self._handed_out: dict[str, dict[int, CompletionOutput]] = {}

    def add(self, prompt: TokenizedPrompt) -> TokenizedPrompt:
        """Returns the prompt as a replica gets it."""
        params = prompt.sampling_params
        if params.output_kind is not RequestOutputKind.DELTA:
            return prompt
        self._handed_out[prompt.request_id] = {}
        whole = dataclasses.replace(params, output_kind=RequestOutputKind.CUMULATIVE)
        return dataclasses.replace(prompt, sampling_params=whole)

    def remove(self, request_ids: Iterable[str]) -> None:
        """Forgets prompts."""
        for name in request_ids:
            self._handed_out.pop(name, None)

    def output(self, prompt: TokenizedPrompt, output: RequestOutput) -> RequestOutput:
        """Returns a replica's output with its prompt, and only what is new if that was asked."""
        completions = output.outputs
        handed_out = self._handed_out.get(prompt.request_id)
        if handed_out is not None:
            completions = [_cut(whole, handed_out.get(whole.index)) for whole in output.outputs]
            for whole in output.outputs:
                before = handed_out.get(whole.index)
                if before is None or len(whole.token_ids) > len(before.token_ids):
                    handed_out[whole.index] = whole
        if output.finished:
            self._handed_out.pop(prompt.request_id, None)
        return dataclasses.replace(
            output,
            prompt=prompt.text,
            prompt_token_ids=list(prompt.token_ids),
            outputs=completions,
        )


def _cut(whole: CompletionOutput, before: CompletionOutput | None) -> CompletionOutput:
    """Returns what an answer has that it did not have before."""
    if before is None:
        return whole
    return dataclasses.replace(
        whole,
        text=whole.text[len(before.text) :],
        token_ids=whole.token_ids[len(before.token_ids) :],
    )
