"""A step is launched before the tokens of the step before are there, and says the same."""

from __future__ import annotations

import random
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from furiosa_llm.errors import NonFiniteLogitsError
from furiosa_llm.outputs import PositionLogprobs, RequestOutput
from furiosa_llm.request import PENDING_TOKEN_ID
from furiosa_llm.sampling_params import SamplingParams
from furiosa_llm.scheduler_output import SamplingInputs
from furiosa_llm.structured_outputs import StructuredOutputs
from tests.checkpoints import VOCAB_SIZE
from tests.unit.gpu.gpu_factories import make_share, make_step
from tests.unit.gpu.gpu_path import GpuPath, run_all
from tests.unit.gpu.host_waits import HostReads, HostWaits
from tests.unit.gpu.late_device import LateDevice
from tests.unit.gpu.test_decode_graphs import PROMPTS, SHAPES

KINDS: dict[str, dict[str, Any]] = {
    "greedy": {"temperature": 0},
    "seeded": {"temperature": 0.9, "top_p": 0.9, "seed": 3},
    "penalties": {"temperature": 0.8, "repetition_penalty": 1.3, "presence_penalty": 0.5},
    "log probabilities": {"temperature": 0.7, "top_k": 20, "logprobs": 3, "prompt_logprobs": 2},
    "a grammar": {"structured_outputs": StructuredOutputs(regex="[0-9]{3}-[a-z]{2,9}")},
    "a stop string": {"temperature": 1.0, "stop": ("e", "a", "1")},
    "no end yet": {"temperature": 1.0, "min_tokens": 3, "logit_bias": {2: 6.0}},
    "several answers": {"temperature": 1.0, "n": 2, "best_of": 3},
}
GREEDY = SamplingParams(temperature=0, max_tokens=12, ignore_eos=True)
POISON = 200


def answer(
    path: Path,
    prompts: Sequence[Sequence[int]],
    params: Sequence[SamplingParams],
    *,
    late: LateDevice | None = None,
    queue_limit: int = 2,
    **options: Any,
) -> list[RequestOutput]:
    """One step after the other, unless the device is late."""
    num_in_flight = 1 if late is None else queue_limit
    core = GpuPath.of(path, late=late, npu_queue_limit=num_in_flight, **options).core
    outputs = run_all(core, prompts, params)
    assert late is None or not late.is_stuck
    return outputs


def told(outputs: Sequence[RequestOutput], number: Callable[[float], Any] = float) -> list[Any]:
    """All that outputs say."""

    def scores(positions: Sequence[PositionLogprobs | None] | None) -> Any:
        return [
            position
            and {token: (entry.rank, number(entry.logprob)) for token, entry in position.items()}
            for position in positions or ()
        ]

    return [
        (
            [
                (one.token_ids, one.text, one.finish_reason, one.stop_reason, scores(one.logprobs))
                for one in output.outputs
            ],
            scores(output.prompt_logprobs),
            type(output.error),
        )
        for output in outputs
    ]


def about(logprob: float) -> Any:
    """Batches of other sizes may differ in the last bits."""
    return pytest.approx(logprob, abs=1e-4)


def with_room(name: str, max_tokens: int = 12) -> SamplingParams:
    return SamplingParams(max_tokens=max_tokens, **KINDS[name])


@pytest.mark.parametrize("shapes", [None, SHAPES], ids=["as they are", "with graphs"])
@pytest.mark.parametrize("name", KINDS)
def test_answers_with_steps_ahead_are_those_of_one_step_after_the_other(
    name: str, shapes: Any, checkpoint: Callable[[str], Path]
) -> None:
    if name == "a grammar":
        pytest.importorskip("llguidance")
    path, params = checkpoint("Llama"), [with_room(name)] * len(PROMPTS)
    options: dict[str, Any] = {"max_num_seqs": 5, "max_num_batched_tokens": 48}
    expected = answer(path, PROMPTS, params, **options)
    late = LateDevice()

    outputs = answer(path, PROMPTS, params, late=late, shapes=shapes, **options)

    assert told(outputs) == told(expected, about)
    assert late.num_waits > 10


@pytest.mark.parametrize("shapes", [None, SHAPES], ids=["as they are", "with graphs"])
@pytest.mark.parametrize("name", KINDS)
def test_only_a_step_that_needs_the_value_of_a_token_waits_for_the_step_before(
    name: str, shapes: Any, checkpoint: Callable[[str], Path]
) -> None:
    if name == "a grammar":
        pytest.importorskip("llguidance")
    late, params = LateDevice(), with_room(name)
    sampling = SamplingInputs(params=params, seed=1, position=0, prompt_token_ids=(5, 6))
    answer_so_far = (PENDING_TOKEN_ID,) if params.needs_answer else ()
    later = sampling._replace(position=1, output_token_ids=answer_so_far)
    prefill = make_step(make_share(0, (5, 6), block_ids=(0,), sampling=sampling))
    decode = make_step(make_share(0, (PENDING_TOKEN_ID,), start=2, block_ids=(0,), sampling=later))
    runner = GpuPath.of(checkpoint("Llama"), late=late, shapes=shapes, npu_queue_limit=2).runner

    first = runner.launch(prefill)
    with HostReads() as reads, HostWaits() as waits:
        second = runner.launch(decode)

    assert late.num_asked == params.needs_answer
    assert waits.names == []
    assert reads.names == ["tolist"] * params.needs_answer
    (token_id,) = first.result().token_ids.values()
    known = later._replace(output_token_ids=(token_id,) if answer_so_far else ())
    alone = make_step(make_share(0, (token_id,), start=2, block_ids=(0,), sampling=known))
    assert second.result().token_ids == runner.launch(alone).result().token_ids


prompts_and_kinds = st.lists(
    st.tuples(st.integers(1, 60), st.sampled_from([*KINDS]), st.integers(3, 14), st.integers(0, 9)),
    min_size=1,
    max_size=7,
)


@settings(max_examples=25, deadline=None)
@given(
    rows=prompts_and_kinds,
    queue_limit=st.integers(2, 3),
    num_blocks=st.integers(8, 20),
    max_num_seqs=st.integers(1, 5),
    token_budget=st.integers(8, 64),
    has_graphs=st.booleans(),
)
def test_requests_of_all_kinds_side_by_side_are_answered_the_same(
    rows: list[tuple[int, str, int, int]],
    queue_limit: int,
    num_blocks: int,
    max_num_seqs: int,
    token_budget: int,
    has_graphs: bool,
    checkpoint: Callable[[str], Path],
) -> None:
    pytest.importorskip("llguidance")
    prompts = [
        [random.Random(seed).randrange(3, VOCAB_SIZE) for _ in range(length)]
        for length, _, _, seed in rows
    ]
    params = [with_room(name, max_tokens) for _, name, max_tokens, _ in rows]
    options: dict[str, Any] = {
        "num_blocks": num_blocks,  # so few that some requests give theirs back
        "max_num_seqs": max_num_seqs,
        "max_num_batched_tokens": token_budget,
    }
    path = checkpoint("Qwen3")
    expected = answer(path, prompts, params, **options)

    outputs = answer(
        path,
        prompts,
        params,
        late=LateDevice(),
        queue_limit=queue_limit,
        shapes=SHAPES if has_graphs else None,
        **options,
    )

    assert told(outputs) == told(expected, about)


def test_a_tight_cache_does_preempt(checkpoint: Callable[[str], Path]) -> None:
    late = LateDevice()

    outputs = answer(checkpoint("Llama"), PROMPTS, [GREEDY] * len(PROMPTS), late=late, num_blocks=9)

    assert sum(output.metrics.num_preemptions for output in outputs) > 0


@pytest.mark.parametrize("shapes", [None, SHAPES], ids=["as they are", "with graphs"])
@pytest.mark.parametrize("is_answer", [False, True], ids=["in its prompt", "in its answer"])
def test_a_request_without_finite_scores_fails_and_harms_no_other(
    is_answer: bool, shapes: Any, checkpoint: Callable[[str], Path], tmp_path: Path
) -> None:
    path = tmp_path / "model"
    shutil.copytree(checkpoint("Llama"), path)
    weights = load_file(path / "model.safetensors")
    weights["model.embed_tokens.weight"][POISON] = float("nan")
    save_file(weights, path / "model.safetensors", metadata={"format": "pt"})
    careful = GREEDY.updated({"logit_bias": {POISON: -100}})
    expected = answer(path, PROMPTS, [careful] * len(PROMPTS))
    prompts, params = list(PROMPTS), [careful] * len(PROMPTS)
    if is_answer:
        params[2] = GREEDY.updated({"logit_bias": {POISON: 100}})
    else:
        prompts[2] = [*prompts[2], POISON]

    outputs = answer(path, prompts, params, late=LateDevice(), shapes=shapes)

    assert isinstance(outputs[2].error, NonFiniteLogitsError)
    assert outputs[2].outputs[0].token_ids == ([POISON] if is_answer else [])
    del outputs[2], expected[2]
    assert told(outputs) == told(expected, about)
