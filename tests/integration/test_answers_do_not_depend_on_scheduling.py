"""What cannot matter to an answer does not: cache size, chunks, prefix cache, neighbours, order."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from furiosa_llm.config import EngineArgs
from furiosa_llm.llm_engine import LLMEngine
from furiosa_llm.outputs import RequestOutput
from furiosa_llm.sampling_params import SamplingParams
from tests.checkpoints import VOCAB_SIZE
from tests.factories import answer_all

GREEDY = SamplingParams(temperature=0, max_tokens=20, ignore_eos=True)
SEEDED = SamplingParams(temperature=0.9, top_p=0.9, max_tokens=20, ignore_eos=True)
WITH_PENALTIES = SamplingParams(
    temperature=0.8, top_k=20, repetition_penalty=1.3, presence_penalty=0.5, max_tokens=20, n=2
)
KINDS = [GREEDY, SEEDED, WITH_PENALTIES]
ROOMY = {
    "paged_attention_num_blocks": 256,
    "max_num_batched_tokens": 1024,
    "enable_prefix_caching": False,
    "npu_queue_limit": 1,
}


def make_engine(path: Path, **changes: Any) -> LLMEngine:
    options: dict[str, Any] = {**ROOMY, "paged_attention_block_size": 16, "max_num_seqs": 16}
    return LLMEngine.from_engine_args(EngineArgs(model=str(path), **{**options, **changes}))


def make_prompts() -> list[list[int]]:
    """Ten prompts, half of which share their first 40 tokens."""
    draw = random.Random(0)
    shared = [draw.randrange(3, VOCAB_SIZE) for _ in range(40)]
    tails = [[draw.randrange(3, VOCAB_SIZE) for _ in range(5 + 7 * i)] for i in range(10)]
    return [shared + tail if i % 2 else tail for i, tail in enumerate(tails)]


def tokens(outputs: list[RequestOutput]) -> list[list[list[int]]]:
    return [[answer.token_ids for answer in output.outputs] for output in outputs]


@pytest.fixture(scope="module")
def path(checkpoint: Callable[[str], Path]) -> Path:
    return checkpoint("Qwen3")


@pytest.fixture(scope="module")
def plain(path: Path) -> list[list[list[list[int]]]]:
    """The answers of each kind with all the room there is and no sharing."""
    return [tokens(answer_all(make_engine(path), make_prompts(), kind)) for kind in KINDS]


@pytest.mark.parametrize(
    "changes",
    [
        pytest.param({"paged_attention_num_blocks": 14}, id="tight cache"),
        pytest.param({"max_num_batched_tokens": 16}, id="chunked prefill"),
        pytest.param({"enable_prefix_caching": True}, id="prefix cache"),
        pytest.param({"is_offline": True}, id="offline order"),
        pytest.param({"max_num_seqs": 1}, id="one at a time"),
        pytest.param({"paged_attention_block_size": 64}, id="larger blocks"),
        pytest.param({"npu_queue_limit": 2}, id="two steps in flight"),
        pytest.param({"npu_queue_limit": 3, "max_num_seqs": 2}, id="three steps in flight"),
        pytest.param({"prefill_chunk_size": 7}, id="short chunks"),
        pytest.param(
            {
                "paged_attention_num_blocks": 14,
                "max_num_batched_tokens": 16,
                "enable_prefix_caching": True,
                "is_offline": True,
                "npu_queue_limit": 2,
                "prefill_chunk_size": 9,
            },
            id="all together",
        ),
    ],
)
def test_answers_are_those_of_a_roomy_engine(
    changes: dict[str, Any], path: Path, plain: list[list[list[list[int]]]]
) -> None:
    engine = make_engine(path, **changes)

    # The same engine three times over: an earlier run must not show in a later one.
    answers = [tokens(answer_all(engine, make_prompts(), kind)) for kind in KINDS]

    assert answers == plain


def test_a_tight_cache_does_preempt_and_a_prefix_cache_does_spare_tokens(path: Path) -> None:
    tight = answer_all(make_engine(path, paged_attention_num_blocks=14), make_prompts(), GREEDY)
    caching = answer_all(make_engine(path, enable_prefix_caching=True), make_prompts(), GREEDY)

    assert sum(output.metrics.num_preemptions for output in tight) > 0
    assert sum(output.num_cached_tokens for output in caching) == 4 * 32


@pytest.mark.parametrize("kind", KINDS)
def test_a_request_alone_gets_the_answer_that_it_gets_among_others(
    kind: SamplingParams, path: Path, plain: list[list[list[list[int]]]]
) -> None:
    engine = make_engine(path)
    engine.add_request("3", {"prompt_token_ids": make_prompts()[3]}, kind)
    last: list[RequestOutput] = []
    while engine.has_unfinished_requests():
        last = engine.step() or last

    assert tokens(last) == [plain[KINDS.index(kind)][3]]


def test_another_seed_gives_other_answers(path: Path, plain: list[list[list[list[int]]]]) -> None:
    assert tokens(answer_all(make_engine(path, seed=1), make_prompts(), SEEDED)) != plain[1]


def test_a_seed_of_its_own_pins_an_answer_whatever_the_engine_seed_and_id(path: Path) -> None:
    params = SamplingParams(temperature=1.0, max_tokens=12, seed=5, ignore_eos=True)
    prompt = make_prompts()[0]

    first = tokens(answer_all(make_engine(path), [prompt, prompt], params))
    second = tokens(answer_all(make_engine(path, seed=9), [prompt], params))

    assert first[0] == first[1] == second[0]
