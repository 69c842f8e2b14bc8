"""Log probabilities of the prompts and answers that the engine is working on."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from furiosa_llm.outputs import Logprob, PositionLogprobs
from furiosa_llm.request import Request
from furiosa_llm.scheduler_output import TokenLogprobs
from furiosa_llm.tokenization import Tokenizer


class LogprobKeeper:
    """What is known so far of each prompt and answer that asks for log probabilities."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._texts = _TokenTexts(tokenizer)
        self._answers: dict[int, _Answer] = {}  # by request
        self._prompts: dict[int, _Prompt] = {}  # by the request that scores the prompt

    def add(self, requests: Iterable[Request]) -> None:
        """Takes in the requests of one prompt."""
        for request in requests:
            if request.sampling_params.needs_logprobs:
                self._answers[request.request_id] = _Answer()
            if request.wants_prompt_logprobs:
                self._prompts[request.request_id] = _Prompt()

    def remove(self, requests: Iterable[Request]) -> None:
        """Forgets them."""
        for request in requests:
            self._answers.pop(request.request_id, None)
            self._prompts.pop(request.request_id, None)

    def read_prompts(self, scored: Mapping[int, Sequence[TokenLogprobs]]) -> None:
        """Adds what a step has scored, by request; of requests given up nothing is kept."""
        for request_id, entries in scored.items():
            prompt = self._prompts.get(request_id)
            if prompt is not None:
                prompt.logprobs += map(self._position, entries)

    def read(self, request: Request, entry: TokenLogprobs | None) -> None:
        """Adds those of a request's new token, where it asks for them."""
        if entry is None:
            return
        answer = self._answers[request.request_id]
        answer.cumulative_logprob += entry.logprob
        if request.sampling_params.logprobs is not None:
            answer.logprobs.append(self._position(entry))

    def cumulative_logprob(self, request: Request) -> float | None:
        """Returns the log probability of an answer as a whole; None where it is not known."""
        answer = self._answers.get(request.request_id)
        return None if answer is None else answer.cumulative_logprob

    def answer(self, request: Request, *, is_delta: bool) -> list[PositionLogprobs] | None:
        """Returns those of an answer, or what is new of them; None where they are not asked for."""
        if request.sampling_params.logprobs is None:
            return None
        answer = self._answers[request.request_id]
        start = answer.num_taken if is_delta else 0
        answer.num_taken = len(answer.logprobs)
        return answer.logprobs[start:]

    def prompt(self, request: Request, *, is_delta: bool) -> list[PositionLogprobs | None] | None:
        """Returns those of a prompt once they are complete; as news only once."""
        prompt = self._prompts.get(request.request_id)
        if prompt is None or len(prompt.logprobs) < request.num_prompt_tokens:
            return None
        if is_delta and prompt.is_taken:
            return None
        prompt.is_taken = True
        return list(prompt.logprobs)

    def _position(self, entry: TokenLogprobs) -> PositionLogprobs:
        position = {
            entry.token_id: Logprob(
                logprob=entry.logprob, rank=entry.rank, decoded_token=self._texts[entry.token_id]
            )
        }
        top = zip(entry.top_token_ids, entry.top_logprobs, strict=True)
        for rank, (token_id, logprob) in enumerate(top, start=1):
            if token_id != entry.token_id:
                position[token_id] = Logprob(
                    logprob=logprob, rank=rank, decoded_token=self._texts[token_id]
                )
        return position


class _Answer:
    """What is known of an answer."""

    __slots__ = ("cumulative_logprob", "logprobs", "num_taken")

    def __init__(self) -> None:
        self.cumulative_logprob = 0.0
        self.logprobs: list[PositionLogprobs] = []
        self.num_taken = 0


class _Prompt:
    """What is known of a prompt. Its first token has nothing before it."""

    __slots__ = ("is_taken", "logprobs")

    def __init__(self) -> None:
        self.logprobs: list[PositionLogprobs | None] = [None]
        self.is_taken = False


class _TokenTexts(dict[int, str]):
    """The text of each token by itself, as far as it was asked for."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        super().__init__()
        self._tokenizer = tokenizer

    def __missing__(self, token_id: int) -> str:
        text = self._tokenizer.decode([token_id], skip_special_tokens=False)
        self[token_id] = text
        return text
