from __future__ import annotations

from typing import cast

import torch

from furiosa_llm.engine_limits import ModelInfo
from furiosa_llm.errors import NonFiniteLogitsError
from furiosa_llm.execution.block_tables import BlockTables
from furiosa_llm.execution.grammar_masks import GrammarMasks
from furiosa_llm.execution.grammars import Grammars
from furiosa_llm.execution.input_batch import InputBatch
from furiosa_llm.execution.logprobs import FoundLogprobs
from furiosa_llm.execution.token_chooser import TokenChooser
from furiosa_llm.sampling_params import SamplingParams
from furiosa_llm.tokenization import Tokenizer
from tests.factories import make_request, make_scheduler


def test_equal_tokens_have_the_rank_of_the_first_of_them() -> None:
    logits = torch.tensor([[1.0, 3.0, 1.0, 0.0]])

    (found,) = FoundLogprobs.of(logits, torch.tensor([2]), [0]).read([2])

    assert found.rank == 2


def test_the_order_of_equal_tokens_does_not_depend_on_the_rows_beside() -> None:
    logits = torch.randn(1, 4000, generator=torch.Generator().manual_seed(0)).round()
    both = FoundLogprobs.of(logits.repeat(2, 1), torch.tensor([0, 0]), [3, 20]).read([0, 0])

    (alone,) = FoundLogprobs.of(logits, torch.tensor([0]), [3]).read([0])

    assert both[0].top_token_ids == alone.top_token_ids


def test_a_prompt_whose_tokens_have_no_finite_scores_harms_no_other() -> None:
    scheduler = make_scheduler()
    params = SamplingParams(temperature=0, prompt_logprobs=1)
    for index in range(2):
        scheduler.add(make_request(index, prompt=[1, 2, 3], params=params))
    batch = InputBatch.build(
        scheduler.schedule(), BlockTables(), block_size=16, device=torch.device("cpu")
    )
    logits = torch.zeros(2 + 4, 8)  # two rows that are sampled, then those that are scored
    logits[3, 5] = float("nan")
    info = ModelInfo(max_model_len=64, vocab_size=8, eos_token_ids=frozenset())
    grammars = Grammars(lambda: cast(Tokenizer, None), info)

    result = TokenChooser(GrammarMasks(grammars)).choose(logits, batch).read()

    assert {name: type(error) for name, error in result.failures.items()} == {
        0: NonFiniteLogitsError
    }
    assert "tokens of the prompt" in str(result.failures[0])
