"""Replicas in real processes: the same answers however many there are, and whatever dies."""

from __future__ import annotations

import dataclasses
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from furiosa_llm.config import EngineArgs
from furiosa_llm.errors import EngineError, ModelLoadError, PromptFailedError
from furiosa_llm.llm_engine import LLMEngine
from furiosa_llm.outputs import RequestOutput
from furiosa_llm.sampling_params import RequestOutputKind, SamplingParams
from tests.checkpoints import VOCAB_SIZE
from tests.factories import answer_all
from tests.processes import children, descendants, is_running, wait_until

GREEDY = SamplingParams(temperature=0, max_tokens=20, ignore_eos=True)
SEEDED = SamplingParams(
    temperature=0.9, top_p=0.9, repetition_penalty=1.2, max_tokens=20, ignore_eos=True, n=2
)
LONG = SamplingParams(temperature=0, max_tokens=400, ignore_eos=True)


def make_engine(path: Path, **changes: Any) -> LLMEngine:
    options: dict[str, Any] = {
        "paged_attention_num_blocks": 128,
        "paged_attention_block_size": 16,
        "max_num_seqs": 4,
        "max_num_batched_tokens": 32,
        "data_parallel_size": 2,
    }
    return LLMEngine.from_engine_args(EngineArgs(model=str(path), **{**options, **changes}))


@pytest.fixture(scope="module")
def path(checkpoint: Callable[[str], Path]) -> Path:
    return checkpoint("Qwen3")


@pytest.fixture(scope="module")
def unharmed(path: Path) -> Iterator[LLMEngine]:
    """An engine for the tests that kill nothing."""
    engine = make_engine(path)
    yield engine
    engine.shutdown()


@pytest.fixture
def engine(path: Path) -> Iterator[LLMEngine]:
    engine = make_engine(path)
    yield engine
    engine.shutdown()


def iter_outputs(engine: LLMEngine) -> Iterator[RequestOutput]:
    while engine.has_unfinished_requests():
        yield from engine.step()


def make_prompts(number: int = 12) -> list[list[int]]:
    draw = random.Random(0)
    return [[draw.randrange(3, VOCAB_SIZE) for _ in range(5 + i % 40)] for i in range(number)]


def tokens(outputs: list[RequestOutput]) -> list[list[list[int]]]:
    return [[answer.token_ids for answer in output.outputs] for output in outputs]


def replicas() -> list[int]:
    """The processes of the replicas of the engine that was started last."""
    return children(children(os.getpid())[-1])


def wait_for(condition: Callable[[], bool], seconds: float = 30) -> bool:
    end = time.monotonic() + seconds
    while not condition() and time.monotonic() < end:
        time.sleep(0.05)
    return condition()


def expected(path: Path, *params: SamplingParams) -> list[list[list[list[int]]]]:
    alone = make_engine(path, data_parallel_size=1)
    return [tokens(answer_all(alone, make_prompts(), kind)) for kind in params]


def test_two_replicas_answer_as_one_does_and_share_the_work(
    unharmed: LLMEngine, path: Path
) -> None:
    outputs = [answer_all(unharmed, make_prompts(), kind) for kind in (GREEDY, SEEDED)]

    assert [tokens(answers) for answers in outputs] == expected(path, GREEDY, SEEDED)
    assert {output.replica for output in outputs[0]} == {0, 1}
    assert [output.prompt_token_ids for output in outputs[0]] == make_prompts()


def test_a_replica_that_is_killed_costs_no_answer_and_none_begins_twice(
    engine: LLMEngine, path: Path
) -> None:
    delta = dataclasses.replace(GREEDY, output_kind=RequestOutputKind.DELTA)
    for index, prompt in enumerate(make_prompts()):
        kind = delta if index % 2 else GREEDY
        engine.add_request(str(index), {"prompt_token_ids": prompt}, kind)
    answers: dict[int, list[int]] = {index: [] for index in range(12)}
    num_calls = 0
    while engine.has_unfinished_requests():
        for output in engine.step():
            index, (answer,) = int(output.request_id), output.outputs
            answers[index] = answers[index] + answer.token_ids if index % 2 else answer.token_ids
        num_calls += 1
        if num_calls == 4:
            os.kill(replicas()[0], signal.SIGKILL)

    assert [[[answer] for answer in answers.values()]] == expected(path, GREEDY)
    assert len(replicas()) == 2


def test_the_engine_ends_when_every_replica_dies_for_nothing_again_and_again(
    engine: LLMEngine,
) -> None:
    for index in range(64):
        engine.add_request(str(index), {"prompt_token_ids": [5] * (index + 3)}, LONG)

    def kill_until_the_end() -> None:
        while engine.has_unfinished_requests():
            engine.step()
            for pid in replicas():
                os.kill(pid, signal.SIGKILL)

    with pytest.raises(EngineError, match="every replica has died; the last one died of signal 9"):
        kill_until_the_end()


def test_no_output_comes_for_an_aborted_request(unharmed: LLMEngine) -> None:
    for index in range(12):
        unharmed.add_request(str(index), {"prompt_token_ids": [5] * 9}, LONG)
    unharmed.step()
    unharmed.abort_request(str(index) for index in range(1, 12))

    outputs: list[RequestOutput] = []
    while unharmed.has_unfinished_requests():
        outputs += unharmed.step()

    assert {output.request_id for output in outputs} == {"0"}


@pytest.mark.parametrize("num_steps", [0, 1, 3])
def test_a_name_of_an_aborted_request_can_be_used_again(
    unharmed: LLMEngine, num_steps: int
) -> None:
    """Some of the first requests wait then, some run, and of some a report is on its way."""
    first, second = {"prompt_token_ids": [5] * 9}, {"prompt_token_ids": [6, 7, 8]}
    unharmed.add_request("alone", second, GREEDY)
    [alone] = [output for output in iter_outputs(unharmed) if output.finished]
    names = [str(index) for index in range(40)]
    for name in names:
        unharmed.add_request(name, first, LONG)
    for _ in range(num_steps):
        unharmed.step()
    unharmed.abort_request(names)

    for name in names:
        unharmed.add_request(name, second, GREEDY)
    answers = {
        output.request_id: output.outputs[0].token_ids
        for output in iter_outputs(unharmed)
        if output.finished
    }

    assert answers == dict.fromkeys(names, alone.outputs[0].token_ids)


def test_a_model_that_cannot_be_loaded_is_the_same_error_as_without_replicas(
    tmp_path: Path,
) -> None:
    before = descendants(os.getpid())

    with pytest.raises(ModelLoadError, match="no such model"):
        make_engine(tmp_path / "missing")

    assert descendants(os.getpid()) == before


def test_nothing_outlives_a_parent_that_is_killed(path: Path) -> None:
    code = (
        "import sys, time\n"
        "from furiosa_llm import EngineArgs, LLMEngine, SamplingParams\n"
        "args = EngineArgs(model=sys.argv[1], data_parallel_size=2)\n"
        "engine = LLMEngine.from_engine_args(args)\n"
        "engine.add_request('a', 'hello', SamplingParams(max_tokens=400, ignore_eos=True))\n"
        "engine.step()\n"
        "print('ready', flush=True)\n"
        "time.sleep(60)\n"
    )
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    parent = subprocess.Popen(
        [sys.executable, "-c", code, str(path)], stdout=subprocess.PIPE, text=True, env=env
    )
    with parent:
        assert parent.stdout is not None
        assert parent.stdout.readline() == "ready\n"
        started = descendants(parent.pid)
        parent.kill()

    assert len(started) == 3  # the launcher and two replicas
    assert wait_until(lambda: not any(map(is_running, started)))


KILLER = """
import os, signal
from transformers import LlamaForCausalLM

class KillerForCausalLM(LlamaForCausalLM):
    def forward(self, input_ids=None, **settings):
        if (input_ids == 13).any():
            os.kill(os.getpid(), signal.SIGKILL)
        return super().forward(input_ids=input_ids, **settings)
"""


@pytest.fixture
def killer(
    checkpoint: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Path:
    """A model that kills its process when it sees token 13."""
    monkeypatch.setenv("HF_MODULES_CACHE", str(tmp_path / "modules"))
    path = tmp_path / "killer"
    path.mkdir()
    for file in checkpoint("Llama").iterdir():
        (path / file.name).write_bytes(file.read_bytes())
    config = json.loads((path / "config.json").read_text())
    config["auto_map"] = {"AutoModelForCausalLM": "modeling_killer.KillerForCausalLM"}
    (path / "config.json").write_text(json.dumps(config))
    (path / "modeling_killer.py").write_text(KILLER)
    return path


def test_prompts_that_kill_replicas_are_given_up_and_cost_neither_answers_nor_replicas(
    killer: Path,
) -> None:
    prompts = [[token] * 9 for token in range(20, 68)]
    killers = [5, 20, 40]
    for index in killers:
        prompts[index] = [20, 13, 20 + index]
    bias = SamplingParams(temperature=0, max_tokens=1, ignore_eos=True)  # none of them says 13
    engine = make_engine(killer, trust_remote_code=True)
    try:
        outputs = answer_all(engine, prompts, bias)
        is_complete = wait_for(lambda: len(replicas()) == 2)  # the last one is being started
    finally:
        engine.shutdown()

    for index, output in enumerate(outputs):
        if index in killers:
            assert isinstance(output.error, PromptFailedError)
            assert "replicas died twice or more while they answered this prompt" in str(
                output.error
            )
        else:
            assert len(output.outputs[0].token_ids) == 1
    assert is_complete
