"""A replica on several processes: pipeline stages, tensor ranks, and several such replicas."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from furiosa_llm.config import EngineArgs
from furiosa_llm.errors import ConfigError
from furiosa_llm.llm_engine import LLMEngine
from furiosa_llm.outputs import RequestOutput
from furiosa_llm.sampling_params import SamplingParams
from tests.factories import answer_all
from tests.processes import children

GREEDY = SamplingParams(temperature=0, max_tokens=16, ignore_eos=True)
SEEDED = SamplingParams(
    temperature=0.8, top_k=20, repetition_penalty=1.3, max_tokens=16, n=2, logprobs=1
)
PROMPTS = [[3 + (7 * i + j) % 200 for j in range(5 + 11 * i)] for i in range(7)]


@pytest.fixture(scope="module")
def path(checkpoint: Callable[[str], Path]) -> Path:
    return checkpoint("Qwen3")


def make_engine(path: Path, **changes: Any) -> LLMEngine:
    options: dict[str, Any] = {
        "max_num_seqs": 4,
        "max_num_batched_tokens": 24,
        "paged_attention_num_blocks": 24,  # too few for all four to the end
        "paged_attention_block_size": 16,
    }
    return LLMEngine.from_engine_args(EngineArgs(model=str(path), **{**options, **changes}))


def tokens(outputs: list[RequestOutput]) -> list[list[list[int]]]:
    return [[answer.token_ids for answer in output.outputs] for output in outputs]


@pytest.fixture(scope="module")
def expected(path: Path) -> list[list[list[list[int]]]]:
    alone = make_engine(path)
    return [tokens(answer_all(alone, PROMPTS, kind)) for kind in (GREEDY, SEEDED)]


@pytest.mark.parametrize(("pp", "tp", "dp"), [(2, 1, 1), (1, 2, 1), (2, 2, 1), (2, 1, 2)])
def test_several_processes_answer_as_one_does(
    pp: int, tp: int, dp: int, path: Path, expected: list[list[list[list[int]]]]
) -> None:
    engine = make_engine(
        path, pipeline_parallel_size=pp, tensor_parallel_size=tp, data_parallel_size=dp
    )
    try:
        outputs = [answer_all(engine, PROMPTS, kind) for kind in (GREEDY, SEEDED)]
    finally:
        engine.shutdown()

    assert [tokens(answers) for answers in outputs] == expected


def test_the_stages_of_a_pipeline_have_a_step_each(path: Path) -> None:
    engine = make_engine(path, pipeline_parallel_size=2, paged_attention_num_blocks=128)
    try:
        for index, prompt in enumerate(PROMPTS):
            engine.add_request(str(index), {"prompt_token_ids": prompt}, GREEDY)
        steps = []
        while engine.has_unfinished_requests():
            engine.step()
            steps += engine.last_steps
    finally:
        engine.shutdown()

    # All but the first, and a few at the end when one request is left, find another in flight.
    num_alone = sum(step.num_steps_in_flight == 1 for step in steps)
    assert max(step.num_steps_in_flight for step in steps) == 2
    assert num_alone < len(steps) / 2


def test_a_replica_whose_second_stage_dies_is_started_again(
    path: Path, expected: list[list[list[list[int]]]]
) -> None:
    engine = make_engine(path, pipeline_parallel_size=2)
    try:
        launcher = children(os.getpid())[-1]
        _, second_stage = children(launcher)
        for index, prompt in enumerate(PROMPTS):
            engine.add_request(str(index), {"prompt_token_ids": prompt}, GREEDY)
        engine.step()
        os.kill(second_stage, signal.SIGKILL)
        last: dict[int, RequestOutput] = {}
        while engine.has_unfinished_requests():
            last.update((int(output.request_id), output) for output in engine.step())
        assert len(children(launcher)) == 2
    finally:
        engine.shutdown()

    assert tokens([last[index] for index in range(len(PROMPTS))]) == expected[0]


def test_a_model_that_cannot_be_split_so_is_refused_by_name(path: Path) -> None:
    with pytest.raises(ConfigError, match=r"the pipeline-parallel size \(3\) exceeds the model's"):
        make_engine(path, pipeline_parallel_size=3)
