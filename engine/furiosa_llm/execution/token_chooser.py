"""Makes of a step's logits its new tokens, and what is asked for about them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from furiosa_llm.errors import NonFiniteLogitsError, RequestError
from furiosa_llm.execution.grammar_masks import GrammarMasks
from furiosa_llm.execution.input_batch import InputBatch
from furiosa_llm.execution.logprobs import ChosenLogits, FoundLogprobs
from furiosa_llm.execution.sampler import NO_TOKEN, sample
from furiosa_llm.execution.staging import to_device, to_host
from furiosa_llm.scheduler_output import PromptScoring, StepResult


class TokenChooser:
    """Chooses tokens. Of a request it keeps nothing that its tokens do not tell again."""

    def __init__(self, grammar_masks: GrammarMasks) -> None:
        self._grammar_masks = grammar_masks

    def choose(self, logits: torch.Tensor, batch: InputBatch) -> ChosenTokens:
        """Chooses the token of each sampled row, and scores the prompt tokens.

        The host waits for nothing, and nothing of `logits` is needed after the return.

        Args:
            logits: [S + P, V] of any float type. It may be changed.
            batch: The step, all tokens in `batch.sampling` known.
        """
        num_sampled = len(batch.sampling)
        sampled, scored = logits[:num_sampled], logits[num_sampled:]
        chosen_logits = ChosenLogits(sampled, batch.sampling)
        forbidden, failures = self._grammar_masks.masks(batch.sampled_request_ids, batch.sampling)
        chosen = sample(sampled, batch.sampling, forbidden)
        token_ids = chosen.clamp(min=0)
        return ChosenTokens(
            batch=batch,
            failures=failures,
            token_ids=token_ids,
            chosen=to_host(chosen),
            scored_rows=chosen_logits.rows,
            logprobs=chosen_logits.look_up(token_ids),
            prompt_logprobs=_score(scored, batch.scoring),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class ChosenTokens:
    """The tokens of a step, and what is asked for about them. Nobody has waited for them yet.

    Attributes:
        batch: The step, of which only what is on the host may be looked at.
        failures: By request, why its grammar cannot go on.
        token_ids: [S] int64, on the device; 0 in a row without a finite score.
        chosen: [S] int64, on its way to the host; `NO_TOKEN` in such a row.
        scored_rows: Those whose log probabilities are asked for.
        logprobs: Of the tokens chosen there.
        prompt_logprobs: As many as requests have prompt tokens to score.
    """

    batch: InputBatch
    failures: Mapping[int, RequestError]
    token_ids: torch.Tensor
    chosen: torch.Tensor
    scored_rows: Sequence[int]
    logprobs: FoundLogprobs
    prompt_logprobs: Sequence[FoundLogprobs]

    def read_token_ids(self) -> list[int]:
        """Returns the tokens, as on the device, once they are on the host."""
        return [0 if token_id == NO_TOKEN else token_id for token_id in self.chosen.tolist()]

    def read(self) -> StepResult:
        """Returns everything, once it is on the host."""
        batch = self.batch
        failures = dict(self.failures)
        scores = {
            request_id: found.read(scoring.token_ids)
            for request_id, found, scoring in zip(
                batch.scored_request_ids, self.prompt_logprobs, batch.scoring, strict=True
            )
        }
        for request_id, entries in scores.items():
            if any(math.isnan(entry.logprob) for entry in entries):
                failures[request_id] = _not_finite("tokens of the prompt")
        for row, token_id in enumerate(self.chosen.tolist()):
            if token_id == NO_TOKEN:
                what = f"token {batch.sampling[row].position} of the answer"
                failures.setdefault(batch.sampled_request_ids[row], _not_finite(what))
        token_ids = self.read_token_ids()
        logprobs = self.logprobs.read([token_ids[row] for row in self.scored_rows])
        return StepResult(
            token_ids=dict(zip(batch.sampled_request_ids, token_ids, strict=True)),
            logprobs={
                batch.sampled_request_ids[row]: entry
                for row, entry in zip(self.scored_rows, logprobs, strict=True)
            },
            prompt_logprobs=scores,
            failures=failures,
        )


def _score(logits: torch.Tensor, scoring: Sequence[PromptScoring]) -> list[FoundLogprobs]:
    """Looks up each request's prompt tokens in its rows of [P, V], which lie end to end."""
    found = []
    start = 0
    for entry in scoring:
        stop = start + len(entry.token_ids)
        token_ids = to_device(torch.tensor(entry.token_ids), logits.device)
        nums_top = [entry.num_top] * len(entry.token_ids)
        found.append(FoundLogprobs.of(logits[start:stop], token_ids, nums_top))
        start = stop
    return found


def _not_finite(what: str) -> NonFiniteLogitsError:
    return NonFiniteLogitsError(
        f"the model gave no finite scores for {what}: its weights are damaged, or the numbers of "
        "--dtype too small"
    )
