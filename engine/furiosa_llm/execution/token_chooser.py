"""Makes of a step's logits its new tokens, and what is asked for about them."""

from __future__ import annotations

import torch

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
        token_ids = sample(sampled, batch.sampling, forbidden)
        logprobs = chosen_logprobs.of(token_ids).items()
        return StepResult(
            token_ids=dict(zip(batch.sampled_request_ids, token_ids, strict=True)),
            logprobs={batch.sampled_request_ids[row]: entry for row, entry in logprobs},
            prompt_logprobs=dict(
                zip(batch.scored_request_ids, prompt_logprobs(scored, batch.scoring), strict=True)
            ),
            failures=failures,
        )
