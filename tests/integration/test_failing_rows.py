"""Rows that break a step or make the model's scores no numbers: they fail, and nothing else."""

from __future__ import annotations

import random
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

from furiosa_llm.config import EngineArgs
from furiosa_llm.errors import EngineError, NonFiniteLogitsError, PromptFailedError
from furiosa_llm.execution.model_runner import ModelRunner
from furiosa_llm.execution.step_queue import RunningStep
from furiosa_llm.llm_engine import LLMEngine
from furiosa_llm.outputs import RequestOutput
from furiosa_llm.sampling_params import SamplingParams
from furiosa_llm.scheduler_output import SchedulerOutput, StepResult
from tests.factories import answer_all

POISON = 200
GREEDY = SamplingParams(temperature=0, max_tokens=12, ignore_eos=True, logit_bias={POISON: -100})
SHARED = [*range(20, 40)]  # a whole block and some

launch = ModelRunner.launch


def make_engine(path: Path, **changes: Any) -> LLMEngine:
    options: dict[str, Any] = {
        "paged_attention_num_blocks": 24,  # so few that those of a bad row are used again
        "paged_attention_block_size": 16,
        "max_num_seqs": 8,
        "max_num_batched_tokens": 64,
        "deterministic": True,  # so that batches of other sizes give the same bytes
        "data_parallel_size": 1,
    }
    return LLMEngine.from_engine_args(EngineArgs(model=str(path), **{**options, **changes}))


def make_prompts(number: int = 24, *, poisoned: frozenset[int] = frozenset()) -> list[list[int]]:
    """Half of them start alike; the poison comes after that."""
    draw = random.Random(0)
    prompts = []
    for index in range(number):
        own = [draw.randrange(40, POISON) for _ in range(3 + index % 30)]
        poison = [POISON] if index in poisoned else []
        prompts.append((SHARED if index % 2 else []) + poison + own)
    return prompts


def answers(outputs: list[RequestOutput]) -> list[Any]:
    return [(output.outputs, output.error) for output in outputs]


@dataclass
class FailingStep:
    """A step that the device fails of when the next one may have been launched."""

    error: Exception

    def result(self) -> StepResult:
        raise self.error


def is_poisoned(step: SchedulerOutput) -> bool:
    return any(POISON in share.token_ids for share in step.requests)


@pytest.fixture(scope="module")
def path(checkpoint: Callable[[str], Path]) -> Path:
    return checkpoint("Llama")


@pytest.fixture(scope="module")
def nan_path(path: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model to which the poison is not a number."""
    copy = tmp_path_factory.mktemp("nan") / "model"
    shutil.copytree(path, copy)
    weights = load_file(copy / "model.safetensors")
    weights["model.embed_tokens.weight"][POISON] = float("nan")
    save_file(weights, copy / "model.safetensors", metadata={"format": "pt"})
    return copy


@pytest.mark.parametrize("num_steps_in_flight", [1, 2, 3])
@pytest.mark.parametrize("fails_late", [False, True])
@pytest.mark.parametrize("poisoned", [{4}, {1}, {2, 3, 4, 5}, {0, 23}, set(range(8, 16))], ids=str)
def test_rows_that_break_a_step_fail_and_the_others_are_answered_as_without_them(
    path: Path,
    monkeypatch: pytest.MonkeyPatch,
    num_steps_in_flight: int,
    fails_late: bool,
    poisoned: set[int],
) -> None:
    def break_down(runner: ModelRunner, step: SchedulerOutput) -> RunningStep:
        launched = launch(runner, step)  # the cache is written to
        if not is_poisoned(step):
            return launched
        error = ValueError("bad\n  token")
        if fails_late:
            return FailingStep(error)
        raise error

    expected = answers(answer_all(make_engine(path), make_prompts(), GREEDY))
    engine = make_engine(path, npu_queue_limit=num_steps_in_flight)
    monkeypatch.setattr(ModelRunner, "launch", break_down)

    outputs = answer_all(engine, make_prompts(poisoned=frozenset(poisoned)), GREEDY)

    for index, output in enumerate(outputs):
        if index in poisoned:
            assert isinstance(output.error, PromptFailedError)
            assert str(output.error).endswith("while it answered this prompt: bad token")
            assert output.outputs[0].finish_reason == "error"
        else:
            assert answers([output]) == [expected[index]]


@pytest.mark.parametrize("num_steps_in_flight", [1, 2])
@pytest.mark.parametrize("chunk_size", [None, 16])
def test_a_row_whose_scores_are_no_numbers_fails_and_spoils_no_shared_block(
    path: Path, nan_path: Path, num_steps_in_flight: int, chunk_size: int | None
) -> None:
    poisoned = frozenset({0, 3, 4, 5, 11})
    expected = answers(answer_all(make_engine(path), make_prompts(), GREEDY))
    engine = make_engine(
        nan_path, npu_queue_limit=num_steps_in_flight, prefill_chunk_size=chunk_size
    )

    outputs = answer_all(engine, make_prompts(poisoned=poisoned), GREEDY)

    failed = {index for index, output in enumerate(outputs) if output.error is not None}
    assert failed == poisoned
    for index, output in enumerate(outputs):
        if index in poisoned:
            assert isinstance(output.error, NonFiniteLogitsError)
            assert output.outputs[0].token_ids == []
        else:
            assert answers([output]) == [expected[index]]


def test_a_row_that_fails_late_keeps_the_tokens_that_it_has(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (whole,) = answer_all(make_engine(path), [[50, 51]], GREEDY)
    num_steps = 0

    def break_down(runner: ModelRunner, step: SchedulerOutput) -> RunningStep:
        nonlocal num_steps
        num_steps += 1
        launched = launch(runner, step)
        if num_steps >= 5 and step.requests[0].request_id >= 0:
            raise KeyError("gone")
        return launched

    monkeypatch.setattr(ModelRunner, "launch", break_down)

    (output,) = answer_all(make_engine(path), [[50, 51]], GREEDY)

    assert output.outputs[0].token_ids == whole.outputs[0].token_ids[:4]
    assert isinstance(output.error, PromptFailedError)


def test_a_step_that_fails_once_costs_no_answer(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = answers(answer_all(make_engine(path), make_prompts(), GREEDY))
    engine = make_engine(path, npu_queue_limit=2)
    num_steps = 0

    def stumble(runner: ModelRunner, step: SchedulerOutput) -> RunningStep:
        nonlocal num_steps
        num_steps += 1
        if num_steps in (4, 9):
            raise MemoryError
        return launch(runner, step)

    monkeypatch.setattr(ModelRunner, "launch", stumble)

    assert answers(answer_all(engine, make_prompts(), GREEDY)) == expected


@pytest.mark.parametrize("num_steps_in_flight", [1, 2])
def test_an_engine_that_can_run_nothing_any_more_ends_with_the_first_cause(
    path: Path, monkeypatch: pytest.MonkeyPatch, num_steps_in_flight: int
) -> None:
    engine = make_engine(path, npu_queue_limit=num_steps_in_flight)
    num_steps = 0

    def break_down(runner: ModelRunner, step: SchedulerOutput) -> RunningStep:
        nonlocal num_steps
        num_steps += 1
        if num_steps > 6:
            raise RuntimeError("the device is gone")
        return launch(runner, step)

    monkeypatch.setattr(ModelRunner, "launch", break_down)

    with pytest.raises(EngineError, match=r"^step \d failed: the device is gone$"):
        answer_all(engine, make_prompts(), GREEDY)
    assert num_steps < 20


def test_prompt_scores_that_are_no_numbers_fail_their_row(nan_path: Path) -> None:
    params = SamplingParams(temperature=0, max_tokens=2, prompt_logprobs=0)

    poisoned, plain = answer_all(make_engine(nan_path), [[50, POISON, 51], [50, 51]], params)

    assert isinstance(poisoned.error, NonFiniteLogitsError)
    assert plain.error is None
    assert plain.prompt_logprobs is not None
    assert len(plain.prompt_logprobs) == 2
