from __future__ import annotations

import torch

from furiosa_llm.execution.logprobs import FoundLogprobs


def test_equal_tokens_have_the_rank_of_the_first_of_them() -> None:
    logits = torch.tensor([[1.0, 3.0, 1.0, 0.0]])

    (found,) = FoundLogprobs.of(logits, torch.tensor([2]), [0]).read([2])

    assert found.rank == 2


def test_the_order_of_equal_tokens_does_not_depend_on_the_rows_beside() -> None:
    logits = torch.randn(1, 4000, generator=torch.Generator().manual_seed(0)).round()
    both = FoundLogprobs.of(logits.repeat(2, 1), torch.tensor([0, 0]), [3, 20]).read([0, 0])

    (alone,) = FoundLogprobs.of(logits, torch.tensor([0]), [3]).read([0])

    assert both[0].top_token_ids == alone.top_token_ids
