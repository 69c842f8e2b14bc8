from __future__ import annotations

from typing import cast

import pytest

from furiosa_llm.engine_limits import CacheConfig, EngineLimits, ModelInfo
from furiosa_llm.errors import InvalidParamsError
from furiosa_llm.prompt_intake import PromptIntake
from furiosa_llm.sampling_params import SamplingParams
from furiosa_llm.scheduler_config import SchedulerConfig
from furiosa_llm.tokenization import Tokenizer


def make_intake(max_model_len: int) -> PromptIntake:
    limits = EngineLimits(
        scheduler_config=SchedulerConfig(max_num_batched_tokens=256),
        cache_config=CacheConfig(num_blocks=4, block_size=16),
        model_info=ModelInfo(
            max_model_len=max_model_len, vocab_size=100, eos_token_ids=frozenset({2})
        ),
    )
    return PromptIntake(cast(Tokenizer, None), limits)


@pytest.mark.parametrize(
    "params", [SamplingParams(max_tokens=None), SamplingParams(max_tokens=900, fits_context=True)]
)
@pytest.mark.parametrize(("max_model_len", "longest"), [(4096, 64), (40, 40)])
def test_an_answer_without_a_length_of_its_own_takes_what_context_and_cache_hold(
    params: SamplingParams, max_model_len: int, longest: int
) -> None:
    taken = make_intake(max_model_len).take(
        "a", {"prompt_token_ids": [5] * 10}, params, arrival_time=0.0
    )

    assert taken.max_tokens == longest - 10


@pytest.mark.parametrize(
    "params",
    [
        SamplingParams(max_tokens=None, min_tokens=31),
        SamplingParams(max_tokens=900, fits_context=True, min_tokens=31),
    ],
)
def test_more_tokens_than_there_is_room_for_cannot_be_demanded(params: SamplingParams) -> None:
    with pytest.raises(InvalidParamsError, match=r"min_tokens is 31, .* leaves room for 30"):
        make_intake(40).take("a", {"prompt_token_ids": [5] * 10}, params, arrival_time=0.0)
