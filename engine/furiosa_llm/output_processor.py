"""Turns requests that have new tokens into outputs: text, stop strings, metrics."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from furiosa_llm.outputs import CompletionOutput, RequestMetrics, RequestOutput
from furiosa_llm.request import FinishReason, Request
from furiosa_llm.sampling_params import RequestOutputKind, SamplingParams
from furiosa_llm.tokenization import Detokenizer, StopStringFinder, Tokenizer


class OutputProcessor:
    """The prompts that are being answered, and the text of their answers so far."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._groups: dict[str, _Group] = {}
        self._group_of: dict[int, _Group] = {}

    def __contains__(self, request_id: str) -> bool:
        return request_id in self._groups

    def __len__(self) -> int:
        return len(self._groups)

    def add(self, request_id: str, prompt: str | None, requests: Sequence[Request]) -> None:
        """Takes in a prompt with the requests of its n answers."""
        group = _Group(
            request_id=request_id,
            prompt=prompt,
            params=requests[0].sampling_params,
            answers=[_Answer(request) for request in requests],
        )
        self._groups[request_id] = group
        for request in requests:
            self._group_of[request.request_id] = group

    def remove(self, request_id: str) -> list[Request]:
        """Forgets a prompt and returns its requests."""
        group = self._groups.pop(request_id)
        requests = [answer.request for answer in group.answers]
        for request in requests:
            del self._group_of[request.request_id]
        return requests

    def read(self, request: Request) -> str | None:
        """Reads a request's new token. Returns the stop string that it completes, if any."""
        group = self._group_of[request.request_id]
        answer = next(entry for entry in group.answers if entry.request is request)
        return answer.read(group.params, self._tokenizer)

    def outputs(self, requests: Sequence[Request]) -> list[RequestOutput]:
        """Returns what is to be handed out now that these requests have a new token."""
        outputs = []
        for group in {id(g): g for g in (self._group_of[r.request_id] for r in requests)}.values():
            finished = group.is_finished
            if finished or group.params.output_kind is not RequestOutputKind.FINAL:
                outputs.append(group.output(self._tokenizer))
            if finished:
                self.remove(group.request_id)
        return outputs


@dataclass(slots=True, eq=False)
class _Answer:
    """One of a prompt's answers: its request, and its text where that is needed as it grows."""

    request: Request
    text: str = ""
    detokenizer: Detokenizer | None = None
    num_tokens_handed_out: int = 0
    num_characters_handed_out: int = 0

    def read(self, params: SamplingParams, tokenizer: Tokenizer) -> str | None:
        if params.output_kind is RequestOutputKind.FINAL and not params.stop:
            return None  # decoded once, when complete
        request = self.request
        if self.detokenizer is None:
            self.detokenizer = Detokenizer(
                tokenizer, skip_special_tokens=params.skip_special_tokens
            )
        new = ""
        if len(_text_token_ids(request)) == request.num_output_tokens:
            new = self.detokenizer.push(request.output_token_ids[-1])
        if request.is_finished:
            new += self.detokenizer.flush()
        self.text += new
        if not params.stop or request.num_output_tokens < params.min_tokens:
            return None
        found = StopStringFinder(params.stop).find(self.text, len(new))
        if found is None:
            return None
        stop_string, position = found
        kept = position + len(stop_string) if params.include_stop_str_in_output else position
        self.text = self.text[:kept]
        return stop_string

    def completion(
        self, index: int, params: SamplingParams, tokenizer: Tokenizer
    ) -> CompletionOutput:
        request = self.request
        text, token_ids = self.text, request.output_token_ids
        if self.detokenizer is None and request.num_output_tokens:
            text = tokenizer.decode(
                _text_token_ids(request), skip_special_tokens=params.skip_special_tokens
            )
        if params.output_kind is RequestOutputKind.DELTA:
            text = text[self.num_characters_handed_out :]
            token_ids = token_ids[self.num_tokens_handed_out :]
            self.num_characters_handed_out += len(text)
            self.num_tokens_handed_out += len(token_ids)
        return CompletionOutput(
            index=index,
            text=text,
            token_ids=list(token_ids),
            finish_reason=request.finish_reason,
            stop_reason=request.stop_reason,
        )


@dataclass(slots=True, eq=False)
class _Group:
    """A prompt and its n answers."""

    request_id: str
    prompt: str | None
    params: SamplingParams
    answers: list[_Answer] = field(default_factory=list)

    @property
    def is_finished(self) -> bool:
        return all(answer.request.is_finished for answer in self.answers)

    def output(self, tokenizer: Tokenizer) -> RequestOutput:
        requests = [answer.request for answer in self.answers]
        return RequestOutput(
            request_id=self.request_id,
            prompt=self.prompt,
            prompt_token_ids=list(requests[0].prompt_token_ids),
            outputs=[
                answer.completion(index, self.params, tokenizer)
                for index, answer in enumerate(self.answers)
            ],
            finished=self.is_finished,
            num_cached_tokens=sum(request.num_cached_tokens for request in requests),
            num_output_tokens=sum(request.num_output_tokens for request in requests),
            metrics=_metrics(requests),
        )


def _text_token_ids(request: Request) -> list[int]:
    """The tokens that the text shows: not the stop token that ended the answer."""
    ended_by_token = request.finish_reason is FinishReason.STOP and not isinstance(
        request.stop_reason, str
    )
    if ended_by_token and not request.sampling_params.include_stop_str_in_output:
        return request.output_token_ids[:-1]
    return request.output_token_ids


def _metrics(requests: Sequence[Request]) -> RequestMetrics:
    arrival = requests[0].arrival_time
    started = [r.first_scheduled_time for r in requests if r.first_scheduled_time is not None]
    answered = [r.first_token_time for r in requests if r.first_token_time is not None]
    finished = [r.finish_time for r in requests if r.finish_time is not None]
    complete = len(finished) == len(requests)
    num_further_tokens = sum(max(r.num_output_tokens - 1, 0) for r in requests)
    decode_seconds = sum(
        r.finish_time - r.first_token_time
        for r in requests
        if r.finish_time is not None and r.first_token_time is not None
    )
    return RequestMetrics(
        queue_s=min(started) - arrival if started else None,
        ttft_s=min(answered) - arrival if answered else None,
        tpot_s=decode_seconds / num_further_tokens if complete and num_further_tokens else None,
        e2e_s=max(finished) - arrival if complete else None,
        peak_blocks=sum(r.peak_blocks for r in requests),
        block_seconds=sum(r.block_seconds for r in requests),
        num_preemptions=sum(r.num_preemptions for r in requests),
        num_recomputed_tokens=sum(r.num_recomputed_tokens for r in requests),
    )
