"""Processes that share a model answer as one process does."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from furiosa_llm.config import EngineArgs
from furiosa_llm.llm_engine import LLMEngine
from furiosa_llm.outputs import RequestOutput
from furiosa_llm.sampling_params import SamplingParams
from furiosa_llm.scheduler_output import SchedulerOutput, StepResult
from tests.checkpoints import VOCAB_SIZE, make_checkpoint
from tests.factories import answer_all, make_request, make_scheduler
from tests.rank_processes import RankProcesses

SERVED = (  # those for which transformers, or in the case of GPT-OSS we, have a plan
    *("Llama", "Qwen2", "Qwen3", "Qwen3Moe", "Mistral", "Gemma2", "Gemma3Text", "Phi3", "Olmo2"),
    *("SmolLM3", "GPTNeoX", "GptOss", "Granite", "Exaone4", "DeepseekV3"),
)
GREEDY = SamplingParams(temperature=0, max_tokens=12, ignore_eos=True)
SEEDED = SamplingParams(temperature=0.9, top_p=0.9, max_tokens=12, ignore_eos=True)
WITH_PENALTIES = SamplingParams(
    temperature=0.8, top_k=20, repetition_penalty=1.3, presence_penalty=0.5, max_tokens=12, n=2
)


def make_args(path: Path, **changes: Any) -> EngineArgs:
    """A small budget: prompts are cut into chunks and mixed with decodes."""
    options: dict[str, Any] = {
        "max_num_seqs": 4,
        "max_num_batched_tokens": 24,
        "paged_attention_num_blocks": 64,
        "paged_attention_block_size": 16,
        "npu_queue_limit": 1,
    }
    return EngineArgs(model=str(path), **{**options, **changes})


def make_prompts() -> list[list[int]]:
    """Six prompts, half of which share their first 40 tokens."""
    draw = random.Random(0)
    shared = [draw.randrange(3, VOCAB_SIZE) for _ in range(40)]
    tails = [[draw.randrange(3, VOCAB_SIZE) for _ in range(5 + 7 * i)] for i in range(6)]
    return [shared + tail if i % 2 else tail for i, tail in enumerate(tails)]


def tokens(outputs: list[RequestOutput]) -> list[list[list[int]]]:
    return [[answer.token_ids for answer in output.outputs] for output in outputs]


def answers(engine: LLMEngine, kind: SamplingParams) -> list[list[list[int]]]:
    return tokens(answer_all(engine, make_prompts(), kind))


def start(folder: Path, *, pp: int, tp: int) -> Iterator[RankProcesses]:
    with RankProcesses(folder, pp=pp, tp=tp) as processes:
        yield processes


@pytest.fixture(scope="module")
def two_tensor_ranks(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RankProcesses]:
    yield from start(tmp_path_factory.mktemp("tp"), pp=1, tp=2)


@pytest.fixture(scope="module")
def two_stages(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RankProcesses]:
    yield from start(tmp_path_factory.mktemp("pp"), pp=2, tp=1)


@pytest.fixture(scope="module")
def two_stages_of_two(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RankProcesses]:
    yield from start(tmp_path_factory.mktemp("both"), pp=2, tp=2)


@pytest.fixture(scope="module")
def alone() -> Callable[[EngineArgs, SamplingParams], list[list[list[int]]]]:
    """The answers of one process, which `test_equals_generate` compares with transformers."""
    known: dict[tuple[str, str], list[list[list[int]]]] = {}

    def answer(args: EngineArgs, kind: SamplingParams) -> list[list[list[int]]]:
        key = repr(args), repr(kind)
        if key not in known:
            known[key] = answers(LLMEngine.from_engine_args(args), kind)
        return known[key]

    return answer


Alone = Callable[[EngineArgs, SamplingParams], list[list[list[int]]]]
Checkpoint = Callable[[str], Path]


@pytest.mark.parametrize("name", SERVED)
def test_two_tensor_ranks_answer_as_one_process(
    name: str, two_tensor_ranks: RankProcesses, alone: Alone, checkpoint: Checkpoint
) -> None:
    args = make_args(checkpoint(name))

    assert answers(two_tensor_ranks.engine(args), GREEDY) == alone(args, GREEDY)


@pytest.mark.parametrize("name", SERVED)
def test_two_stages_answer_as_one_process(
    name: str, two_stages: RankProcesses, alone: Alone, checkpoint: Checkpoint
) -> None:
    args = make_args(checkpoint(name))

    assert answers(two_stages.engine(args), GREEDY) == alone(args, GREEDY)


@pytest.mark.parametrize("name", ["Gemma2", "Qwen3Moe", "GPTNeoX", "DeepseekV3"])
def test_two_stages_of_two_ranks_answer_as_one_process(
    name: str, two_stages_of_two: RankProcesses, alone: Alone, checkpoint: Checkpoint
) -> None:
    args = make_args(checkpoint(name))

    assert answers(two_stages_of_two.engine(args), GREEDY) == alone(args, GREEDY)


@pytest.mark.parametrize("kind", [GREEDY, SEEDED, WITH_PENALTIES])
@pytest.mark.parametrize("shape", ["two_tensor_ranks", "two_stages", "two_stages_of_two"])
def test_preemption_and_sampling_do_not_depend_on_the_ranks(
    shape: str,
    kind: SamplingParams,
    request: pytest.FixtureRequest,
    alone: Alone,
    checkpoint: Checkpoint,
) -> None:
    processes: RankProcesses = request.getfixturevalue(shape)
    roomy = make_args(checkpoint("Qwen3"), max_num_batched_tokens=1024)
    tight = make_args(
        checkpoint("Qwen3"), paged_attention_num_blocks=7, max_num_seqs=8, spare_blocks_ratio=0.0
    )

    outputs = answer_all(processes.engine(tight), make_prompts(), kind)

    assert tokens(outputs) == alone(roomy, kind)
    assert sum(output.metrics.num_preemptions for output in outputs) > 0
    assert sum(output.num_cached_tokens for output in outputs) > 0


def test_stages_of_several_layers_are_cut_unevenly(
    two_stages: RankProcesses, alone: Alone, tmp_path: Path
) -> None:
    args = make_args(make_checkpoint("Llama", tmp_path, changes={"num_hidden_layers": 5}))

    assert answers(two_stages.engine(args), GREEDY) == alone(args, GREEDY)


@pytest.mark.parametrize("shape", ["two_tensor_ranks", "two_stages", "two_stages_of_two"])
def test_tied_embeddings_stay_tied(
    shape: str, request: pytest.FixtureRequest, alone: Alone, tmp_path: Path
) -> None:
    processes: RankProcesses = request.getfixturevalue(shape)
    changes = {"tie_word_embeddings": True, "vocab_size": 301}  # and an odd number of outputs
    args = make_args(make_checkpoint("Qwen2", tmp_path, changes=changes))

    assert answers(processes.engine(args), GREEDY) == alone(args, GREEDY)


def test_stages_of_half_precision_answer_as_one_process(
    two_stages: RankProcesses, alone: Alone, checkpoint: Checkpoint
) -> None:
    args = make_args(checkpoint("Llama"), dtype="bfloat16")

    assert answers(two_stages.engine(args), GREEDY) == alone(args, GREEDY)


def test_ranks_agree_on_the_number_of_blocks_when_it_is_left_to_them(
    two_stages: RankProcesses, checkpoint: Checkpoint
) -> None:
    args = make_args(checkpoint("Llama"), paged_attention_num_blocks=None)

    assert (
        two_stages.engine(args).limits.cache_config.num_blocks == 4 * 32
    )  # 4 requests of 512 tokens


def test_a_stage_goes_on_before_the_next_one_begins(
    two_stages: RankProcesses, checkpoint: Checkpoint
) -> None:
    args = make_args(checkpoint("Llama"))
    prompt = make_prompts()[5]
    expected = LLMEngine.from_engine_args(args)
    two_stages.engine(args)
    steps = prefill_steps(prompt)

    for step in steps:
        two_stages.run_on([0], step)
    results = [two_stages.run_on([1], step)[0] for step in steps]

    assert len(steps) == 4
    assert [result.token_ids for result in results[:-1]] == [{}] * 3
    assert list(results[-1].token_ids.values()) == first_token(expected, prompt)


@pytest.mark.parametrize(("pp", "tp"), [(1, 2), (2, 1)])
def test_a_rank_fails_when_another_one_dies(
    pp: int, tp: int, checkpoint: Checkpoint, tmp_path: Path
) -> None:
    with RankProcesses(tmp_path, pp=pp, tp=tp) as processes:
        processes.engine(make_args(checkpoint("Llama")))
        processes.processes[0].kill()
        processes.processes[0].join()

        with pytest.raises(RuntimeError, match="peer"):
            processes.run_on([1], prefill_steps([3])[0])


def prefill_steps(prompt: list[int]) -> list[SchedulerOutput]:
    """The steps that compute a prompt, the last of which samples a token."""
    scheduler = make_scheduler(token_budget=24)
    scheduler.add(make_request(prompt=prompt, max_tokens=4))
    steps: list[SchedulerOutput] = []
    while not steps or not steps[-1].requests[0].samples_token:
        steps.append(scheduler.schedule())
        if not steps[-1].requests[0].samples_token:
            scheduler.update(steps[-1], StepResult(token_ids={}))
    return steps


def first_token(engine: LLMEngine, prompt: list[int]) -> list[int]:
    outputs: list[RequestOutput] = answer_all(
        engine, [prompt], SamplingParams(temperature=0, max_tokens=1)
    )
    return outputs[0].outputs[0].token_ids
