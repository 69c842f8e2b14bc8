"""Makes of a step's logits its new tokens, and what is asked for about them."""

from __future__ import annotations

import math

import torch

from furiosa_llm.errors import NonFiniteLogitsError
from furiosa_llm.execution.grammar_masks import GrammarMasks
from furiosa_llm.execution.input_batch import InputBatch
from furiosa_llm.execution.logprobs import ChosenLogprobs, prompt_logprobs
from furiosa_llm.execution.sampler import sample
from furiosa_llm.scheduler_output import StepResult


class TokenChooser:
    """Chooses tokens. Of a request it keeps nothing that its tokens do not tell again."""

    def __init__(self, grammar_masks: GrammarMasks) -> None:
        self._grammar_masks = grammar_masks

    def choose(self, logits: torch.Tensor, batch: InputBatch) -> StepResult:
        """Chooses the token of each sampled row, and scores the prompt tokens.

        Args:
            logits: [S + P, V] of any float type. It may be changed.
            batch: The step.
        """
        num_sampled = len(batch.sampling)
        sampled, scored = logits[:num_sampled], logits[num_sampled:]
        chosen_logprobs = ChosenLogprobs(sampled, batch.sampling)
        forbidden, failures = self._grammar_masks.masks(batch.sampled_request_ids, batch.sampling)
        chosen = sample(sampled, batch.sampling, forbidden)
        token_ids = [0 if token_id is None else token_id for token_id in chosen]
        logprobs = chosen_logprobs.of(token_ids).items()
        scores = dict(
            zip(batch.scored_request_ids, prompt_logprobs(scored, batch.scoring), strict=True)
        )
        for request_id, entries in scores.items():
            if any(math.isnan(entry.logprob) for entry in entries):
                failures[request_id] = _not_finite("tokens of the prompt")
        for row, request_id in enumerate(batch.sampled_request_ids):
            if chosen[row] is None:
                position = batch.sampling[row].position
                failures.setdefault(request_id, _not_finite(f"token {position} of the answer"))
        return StepResult(
            token_ids=dict(zip(batch.sampled_request_ids, token_ids, strict=True)),
            logprobs={batch.sampled_request_ids[row]: entry for row, entry in logprobs},
            prompt_logprobs=scores,
            failures=failures,
        )


def _not_finite(what: str) -> NonFiniteLogitsError:
    return NonFiniteLogitsError(
        f"the model gave no finite scores for {what}: its weights are damaged, or the numbers of "
        "--dtype too small"
    )
