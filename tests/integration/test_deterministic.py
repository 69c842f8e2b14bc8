"""With `deterministic`, an answer and its probabilities are the same bytes in any company."""

from __future__ import annotations

import functools
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from furiosa_llm.config import EngineArgs
from furiosa_llm.errors import ConfigError, ModelLoadError
from furiosa_llm.llm_engine import LLMEngine
from furiosa_llm.sampling_params import SamplingParams
from tests.checkpoints import VOCAB_SIZE
from tests.factories import answer_all

PARAMS = SamplingParams(temperature=0.8, seed=3, max_tokens=12, ignore_eos=True, logprobs=2)
Answer = tuple[list[int], str]  # tokens, and their probabilities to the last digit


def make_prompts() -> list[list[int]]:
    """Prompts of many lengths, some of which start alike."""
    draw = random.Random(1)
    shared = [draw.randrange(3, VOCAB_SIZE) for _ in range(37)]
    tails = [[draw.randrange(3, VOCAB_SIZE) for _ in range(1 + 9 * i)] for i in range(8)]
    return [shared + tail if i % 2 else tail for i, tail in enumerate(tails)]


def answers(path: Path, prompts: list[list[int]], **options: Any) -> list[Answer]:
    common: dict[str, Any] = {"deterministic": True, "paged_attention_block_size": 16}
    engine = LLMEngine.from_engine_args(EngineArgs(model=str(path), **{**common, **options}))
    try:
        outputs = answer_all(engine, prompts, PARAMS)
    finally:
        engine.shutdown()
    return [(output.outputs[0].token_ids, repr(output.outputs[0].logprobs)) for output in outputs]


@functools.cache
def answers_alone(path: Path, quantization: str | None) -> list[Answer]:
    return [answers(path, [prompt], quantization=quantization)[0] for prompt in make_prompts()]


@settings(max_examples=12, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    order=st.permutations(range(8)).flatmap(
        lambda order: st.integers(1, 8).map(lambda count: order[:count])
    ),
    options=st.fixed_dictionaries(
        {
            "max_num_batched_tokens": st.sampled_from([16, 64, 1024]),
            "max_num_seqs": st.integers(1, 16),
            "paged_attention_num_blocks": st.sampled_from([14, 64]),
            "enable_prefix_caching": st.booleans(),
            "is_offline": st.booleans(),
            "npu_queue_limit": st.integers(1, 2),
            "threads_per_replica": st.integers(1, 2),
            "quantization": st.sampled_from([None, "int8"]),
        }
    ),
)
@pytest.mark.parametrize("name", ["Qwen3", "GPT2"])
def test_an_answer_is_the_same_to_the_last_digit_in_any_company(
    name: str, order: list[int], options: dict[str, Any], checkpoint: Callable[[str], Path]
) -> None:
    path, prompts = checkpoint(name), make_prompts()

    together = answers(path, [prompts[index] for index in order], **options)

    alone = answers_alone(path, options["quantization"])
    assert together == [alone[index] for index in order]


def test_an_answer_is_the_same_to_the_last_digit_from_two_replicas(
    checkpoint: Callable[[str], Path],
) -> None:
    path = checkpoint("Qwen3")

    assert answers(path, make_prompts(), data_parallel_size=2) == answers_alone(path, None)


@pytest.mark.parametrize(
    "options", [{"deterministic": True}, {"quantization": "int8"}], ids=["deterministic", "int8"]
)
def test_a_model_that_is_split_is_refused(
    options: dict[str, Any], checkpoint: Callable[[str], Path]
) -> None:
    args = EngineArgs(
        model=str(checkpoint("Qwen3")), devices="cpu", pipeline_parallel_size=2, **options
    )
    with pytest.raises(ConfigError, match="is not supported with a model that is split"):
        LLMEngine.from_engine_args(args)


def test_a_model_that_cannot_be_is_refused_by_name(checkpoint: Callable[[str], Path]) -> None:
    with pytest.raises(ModelLoadError, match="Qwen3MoeForCausalLM is not deterministic"):
        answers(checkpoint("Qwen3Moe"), [[5]])
