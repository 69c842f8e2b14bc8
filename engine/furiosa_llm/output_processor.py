"""Turns requests that have new tokens into outputs: text, stop strings, metrics."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from furiosa_llm.detokenization import Detokenizer, StopStringFinder
from furiosa_llm.output_logprobs import LogprobKeeper
from furiosa_llm.outputs import CompletionOutput, RequestMetrics, RequestOutput
from furiosa_llm.request import FinishReason, Request
from furiosa_llm.sampling_params import RequestOutputKind
from furiosa_llm.scheduler_output import TokenLogprobs
from furiosa_llm.tokenization import Tokenizer


class OutputProcessor:
    """The prompts that are being answered, the text of their answers so far and what is known."""

    def __init__(self, tokenizer: Tokenizer, *, replica: int = 0) -> None:
        self._tokenizer = tokenizer
        self._replica = replica
        self._requests: dict[str, tuple[Request, ...]] = {}  # the answers drawn for each prompt
        self._prompts: dict[str, str] = {}  # of those given as text
        self._texts: dict[int, _GrowingText] = {}  # by request, where it is needed as it grows
        self._logprobs = LogprobKeeper(tokenizer)

    def __contains__(self, request_id: str) -> bool:
        return request_id in self._requests

    def __len__(self) -> int:
        return len(self._requests)

    def unfinished(self) -> Iterable[tuple[str, tuple[Request, ...]]]:
        """Returns the prompts with the requests of their answers."""
        return self._requests.items()

    def add(self, prompt: str | None, requests: Sequence[Request]) -> None:
        """Takes in a prompt with the requests of its answers."""
        group_id = requests[0].group_id
        assert group_id not in self._requests, f"prompt {group_id!r} is unfinished"
        self._logprobs.add(requests)
        self._requests[group_id] = tuple(requests)
        if prompt is not None:
            self._prompts[group_id] = prompt

    def remove(self, request_id: str) -> tuple[Request, ...]:
        """Forgets a prompt and returns its requests."""
        requests = self._requests.pop(request_id)
        self._prompts.pop(request_id, None)
        self._logprobs.remove(requests)
        for request in requests:
            self._texts.pop(request.request_id, None)
        return requests

    def unfinished_of(self, request_id: str) -> list[Request]:
        """Returns the requests of a prompt whose answers are not complete."""
        return [each for each in self._requests.get(request_id, ()) if not each.is_finished]

    def read_prompts(self, scored: Mapping[int, Sequence[TokenLogprobs]]) -> None:
        """Reads the log probabilities of prompt tokens, by request."""
        self._logprobs.read_prompts(scored)

    def read(self, request: Request, logprobs: TokenLogprobs | None = None) -> str | None:
        """Reads a request's new token. Returns the stop string that it completes, if any."""
        params = request.sampling_params
        self._logprobs.read(request, logprobs)
        if params.is_delivered_whole and not params.stop:
            return None  # decoded once, when complete
        text = self._texts.get(request.request_id)
        if text is None:
            detokenizer = Detokenizer(
                self._tokenizer, skip_special_tokens=params.skip_special_tokens
            )
            text = _GrowingText(detokenizer, StopStringFinder(params.stop))
            self._texts[request.request_id] = text
        return text.read(request)

    def outputs(self, changed: Sequence[Request]) -> list[RequestOutput]:
        """Returns what is to be handed out now that these requests have a new token."""
        outputs = []
        due = (
            request.group_id
            for request in changed
            if request.is_finished or not request.sampling_params.is_delivered_whole
        )
        for group_id in dict.fromkeys(due):
            requests = self._requests[group_id]
            is_finished = all(request.is_finished for request in requests)
            if is_finished or not requests[0].sampling_params.is_delivered_whole:
                outputs.append(self._output(group_id, requests, is_finished=is_finished))
            if is_finished:
                self.remove(group_id)
        return outputs

    def _output(
        self, group_id: str, requests: Sequence[Request], *, is_finished: bool
    ) -> RequestOutput:
        first = requests[0]
        returned = self._best(requests) if first.sampling_params.is_ranked else requests
        return RequestOutput(
            request_id=group_id,
            prompt=self._prompts.get(group_id),
            prompt_token_ids=list(first.prompt_token_ids),
            outputs=[self._completion(request, index) for index, request in enumerate(returned)],
            finished=is_finished,
            num_cached_tokens=first.account.num_cached_tokens if first.account else 0,
            num_output_tokens=sum(request.num_output_tokens for request in requests),
            metrics=_metrics(requests),
            replica=self._replica,
            prompt_logprobs=self._logprobs.prompt(first, is_delta=_is_delta(first)),
            error=next((each.error for each in returned if each.error is not None), None),
        )

    def _best(self, requests: Sequence[Request]) -> list[Request]:
        """Returns the n answers that are likeliest as a whole, of equals the one drawn first.

        One that failed comes after all that did not.
        """

        def rank(request: Request) -> tuple[bool, float]:
            return request.error is not None, -(self._logprobs.cumulative_logprob(request) or 0.0)

        return sorted(requests, key=rank)[: requests[0].sampling_params.n]

    def _completion(self, request: Request, index: int) -> CompletionOutput:
        params = request.sampling_params
        growing = self._texts.get(request.request_id)
        token_ids = request.output_token_ids
        text = ""
        if growing is not None:
            text = growing.shown(request)
        elif request.is_finished:
            text = self._tokenizer.decode(
                _text_token_ids(request), skip_special_tokens=params.skip_special_tokens
            )
        if growing is not None and _is_delta(request):
            text, token_ids = growing.take_new(text, token_ids)
        return CompletionOutput(
            index=index,
            text=text,
            token_ids=list(token_ids),
            finish_reason=request.finish_reason,
            stop_reason=request.stop_reason,
            cumulative_logprob=self._logprobs.cumulative_logprob(request),
            logprobs=self._logprobs.answer(request, is_delta=_is_delta(request)),
        )


class _GrowingText:
    """The text of an answer that is handed out, or searched for stop strings, as it grows."""

    def __init__(self, detokenizer: Detokenizer, stop_strings: StopStringFinder) -> None:
        self.text = ""
        self._detokenizer = detokenizer
        self._stop_strings = stop_strings
        self._num_tokens_taken = 0
        self._num_characters_taken = 0

    def read(self, request: Request) -> str | None:
        """Reads the request's last token. Returns the stop string that it completes, if any."""
        params = request.sampling_params
        new = ""
        if len(_text_token_ids(request)) == request.num_output_tokens:
            new = self._detokenizer.push(request.output_token_ids[-1])
        if request.is_finished:
            new += self._detokenizer.flush()
        self.text += new
        if request.num_output_tokens < params.min_tokens:
            return None
        found = self._stop_strings.find(self.text, len(new))
        if found is None:
            return None
        stop_string, position = found
        kept = position + len(stop_string) if params.include_stop_str_in_output else position
        self.text = self.text[:kept]
        return stop_string

    def shown(self, request: Request) -> str:
        """Returns the text without what a stop string that may be about to come would cut off."""
        if request.is_finished or request.sampling_params.include_stop_str_in_output:
            return self.text
        return self.text[: len(self.text) - self._stop_strings.num_begun(self.text)]

    def take_new(self, text: str, token_ids: list[int]) -> tuple[str, list[int]]:
        """Returns what was not taken before of the text that is shown and of the tokens."""
        new = text[self._num_characters_taken :], token_ids[self._num_tokens_taken :]
        self._num_characters_taken, self._num_tokens_taken = len(text), len(token_ids)
        return new


def _is_delta(request: Request) -> bool:
    return request.sampling_params.output_kind is RequestOutputKind.DELTA


def _text_token_ids(request: Request) -> list[int]:
    """The tokens that the text shows: not the stop token that ended the answer."""
    ended_by_token = request.finish_reason is FinishReason.STOP and not isinstance(
        request.stop_reason, str
    )
    if ended_by_token and not request.sampling_params.include_stop_str_in_output:
        return request.output_token_ids[:-1]
    return request.output_token_ids


def _metrics(requests: Sequence[Request]) -> RequestMetrics:
    """Takes the answers to one prompt together."""
    arrival = requests[0].arrival_time
    accounts = [request.account for request in requests if request.account is not None]
    answered = [a.first_token_time for a in accounts if a.first_token_time is not None]
    spans = [
        account.finish_time - account.first_token_time
        for account in accounts
        if account.finish_time is not None and account.first_token_time is not None
    ]
    finished = [a.finish_time for a in accounts if a.finish_time is not None]
    is_complete = bool(finished) and all(request.is_finished for request in requests)
    num_further_tokens = sum(max(request.num_output_tokens - 1, 0) for request in requests)
    tpot_s = None
    if is_complete and num_further_tokens:
        tpot_s = sum(spans) / num_further_tokens
    return RequestMetrics(
        queue_s=min(a.start_time for a in accounts) - arrival if accounts else None,
        ttft_s=min(answered) - arrival if answered else None,
        tpot_s=tpot_s,
        e2e_s=max(finished) - arrival if is_complete else None,
        peak_blocks=max((a.peak_blocks for a in accounts), default=0),
        block_seconds=sum(a.block_seconds for a in accounts),
        num_preemptions=sum(a.num_preemptions for a in accounts),
        num_recomputed_tokens=sum(a.num_recomputed_tokens for a in accounts),
    )
