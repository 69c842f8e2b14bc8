"""Log probabilities are those of transformers' logits, however the work was cut up."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from furiosa_llm.llm_engine import LLMEngine
from furiosa_llm.outputs import PositionLogprobs, RequestOutput
from furiosa_llm.sampling_params import RequestOutputKind, SamplingParams
from tests.checkpoints import VOCAB_SIZE
from tests.factories import answer_all
from tests.integration.test_answers_do_not_depend_on_scheduling import make_engine, make_prompts

PARAMS = SamplingParams(
    temperature=0.9,
    top_k=30,
    repetition_penalty=1.2,
    logit_bias={5: 2.0},
    max_tokens=12,
    ignore_eos=True,
    logprobs=3,
    prompt_logprobs=2,
    n=2,
)
CUTS = [
    pytest.param({}, id="all the room there is"),
    pytest.param({"paged_attention_num_blocks": 14}, id="tight cache"),
    pytest.param({"max_num_batched_tokens": 16}, id="chunked prefill"),
    pytest.param({"enable_prefix_caching": True}, id="prefix cache"),
    pytest.param({"npu_queue_limit": 2}, id="two steps in flight"),
    pytest.param(
        {
            "paged_attention_num_blocks": 14,
            "max_num_batched_tokens": 16,
            "enable_prefix_caching": True,
            "is_offline": True,
        },
        id="all together",
    ),
]


@pytest.fixture(scope="module")
def path(checkpoint: Callable[[str], Path]) -> Path:
    return checkpoint("Qwen3")


@pytest.fixture(scope="module")
def model(path: Path) -> torch.nn.Module:
    loaded: torch.nn.Module = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)
    return loaded.eval()


def expected_logprobs(model: torch.nn.Module, token_ids: Sequence[int]) -> torch.Tensor:
    """[T - 1, V]: what transformers thinks of each token but the first."""
    with torch.no_grad():
        logits: torch.Tensor = model(torch.tensor([list(token_ids)])).logits[0, :-1]
    return logits.log_softmax(-1)


def assert_told_right(
    positions: Sequence[PositionLogprobs | None],
    token_ids: Sequence[int],
    expected: torch.Tensor,
    num_top: int,
) -> None:
    assert len(positions) == len(token_ids) == len(expected)
    for position, token_id, row in zip(positions, token_ids, expected, strict=True):
        assert position is not None
        assert next(iter(position)) == token_id
        assert position[token_id].rank == int((row > row[token_id]).sum()) + 1
        top = set(row.topk(num_top).indices.tolist())
        assert set(position) == top | {token_id}
        for other, entry in position.items():
            assert entry.logprob == pytest.approx(row[other].item(), abs=2e-4)
        ranks = sorted(entry.rank for entry in position.values())
        assert ranks[:num_top] == list(range(1, num_top + 1))


def assert_same(
    positions: Sequence[PositionLogprobs | None] | None,
    wanted: Sequence[PositionLogprobs | None] | None,
) -> None:
    """Tokens, ranks and texts to the letter; scores to the rounding.

    A few runs in ten thousand differ in the last bits, though their steps are the same.
    """
    assert positions is not None
    assert wanted is not None
    assert len(positions) == len(wanted)
    for position, other in zip(positions, wanted, strict=True):
        if position is None or other is None:
            assert position is other is None
            continue
        assert list(position) == list(other)
        for token_id, entry in position.items():
            score = other[token_id].logprob
            assert entry.logprob == pytest.approx(score, abs=1e-5)
            assert dataclasses.replace(entry, logprob=score) == other[token_id]


def run_twice(engine: LLMEngine, params: SamplingParams) -> list[RequestOutput]:
    answer_all(engine, make_prompts(), params)  # fills a prefix cache
    return answer_all(engine, make_prompts(), params)


@pytest.mark.parametrize("changes", CUTS)
def test_every_token_is_told_as_transformers_sees_it(
    changes: dict[str, Any], path: Path, model: torch.nn.Module
) -> None:
    for output in run_twice(make_engine(path, **changes), PARAMS):
        prompt = output.prompt_token_ids
        assert output.prompt_logprobs is not None
        assert output.prompt_logprobs[0] is None
        for answer in output.outputs:
            expected = expected_logprobs(model, [*prompt, *answer.token_ids])
            split = len(prompt) - 1
            assert_told_right(output.prompt_logprobs[1:], prompt[1:], expected[:split], 2)
            assert answer.logprobs is not None
            assert_told_right(answer.logprobs, answer.token_ids, expected[split:], 3)
            total = sum(
                position[token].logprob
                for position, token in zip(answer.logprobs, answer.token_ids, strict=True)
            )
            assert answer.cumulative_logprob == pytest.approx(total)


def test_the_cuts_do_cut(path: Path) -> None:
    changes = {"paged_attention_num_blocks": 14, "enable_prefix_caching": True}
    outputs = run_twice(make_engine(path, **changes), PARAMS)

    assert sum(output.metrics.num_preemptions for output in outputs) > 0
    # The first answer scores the prompt, so that no cached block can spare it.
    assert sum(output.num_cached_tokens for output in outputs) == 0


@pytest.mark.parametrize("kind", list(RequestOutputKind))
def test_each_output_kind_tells_the_same(path: Path, kind: RequestOutputKind) -> None:
    engine = make_engine(path)
    params = SamplingParams(
        temperature=0, max_tokens=6, logprobs=1, prompt_logprobs=0, ignore_eos=True
    )
    wanted = answer_all(engine, [[5, 6, 7]], params)[0]
    as_asked = dataclasses.replace(params, output_kind=kind)

    engine.add_request("0", {"prompt_token_ids": [5, 6, 7]}, as_asked)
    engine.step()
    engine.abort_request("0")
    engine.add_request("0", {"prompt_token_ids": [5, 6, 7]}, as_asked)
    outputs: list[RequestOutput] = []
    while engine.has_unfinished_requests():
        outputs += engine.step()

    prompts = [output.prompt_logprobs for output in outputs]
    logprobs = outputs[-1].outputs[0].logprobs
    if kind is RequestOutputKind.DELTA:
        assert prompts[1:] == [None] * 5
        logprobs = [p for output in outputs for p in output.outputs[0].logprobs or ()]
    assert_same(prompts[0], wanted.prompt_logprobs)
    assert_same(logprobs, wanted.outputs[0].logprobs)
    total = outputs[-1].outputs[0].cumulative_logprob
    assert total == pytest.approx(wanted.outputs[0].cumulative_logprob, abs=1e-5)


def test_nothing_is_told_unless_asked_for(path: Path) -> None:
    params = SamplingParams(temperature=0, max_tokens=3)
    output = answer_all(make_engine(path), [[5, 6, 7]], params)[0]

    assert output.prompt_logprobs is None
    assert output.outputs[0].logprobs is None
    assert output.outputs[0].cumulative_logprob is None


def test_a_prompt_of_one_token_has_nothing_to_tell(path: Path) -> None:
    params = SamplingParams(temperature=0, max_tokens=3, prompt_logprobs=5)

    assert answer_all(make_engine(path), [[5]], params)[0].prompt_logprobs == [None]


def test_a_token_is_told_with_its_text(path: Path) -> None:
    params = SamplingParams(temperature=0, max_tokens=1, prompt_logprobs=0)
    engine = make_engine(path)

    position = answer_all(engine, ["ab"], params)[0].prompt_logprobs

    assert position is not None
    assert position[1] is not None
    assert [entry.decoded_token for entry in position[1].values()] == ["b"]


@pytest.mark.parametrize("stop", [(), ("e",)])
@pytest.mark.parametrize("changes", CUTS)
def test_best_of_returns_the_likeliest_of_all_that_are_drawn(
    changes: dict[str, Any], stop: tuple[str, ...], path: Path
) -> None:
    drawn = SamplingParams(temperature=1.0, max_tokens=12, n=5, logprobs=0, stop=stop)
    every = answer_all(make_engine(path), make_prompts(), drawn)
    best = drawn.updated({"n": 2, "best_of": 5, "logprobs": None})

    outputs = answer_all(make_engine(path, **changes), make_prompts(), best)

    for output, all_drawn in zip(outputs, every, strict=True):
        ranked = sorted(all_drawn.outputs, key=lambda one: -(one.cumulative_logprob or 0))
        assert [one.index for one in output.outputs] == [0, 1]
        assert [one.token_ids for one in output.outputs] == [one.token_ids for one in ranked[:2]]
        assert [one.text for one in output.outputs] == [one.text for one in ranked[:2]]
        assert output.outputs[0].cumulative_logprob == pytest.approx(ranked[0].cumulative_logprob)
        assert output.outputs[0].logprobs is None
        assert output.num_output_tokens == all_drawn.num_output_tokens


@pytest.mark.parametrize("kind", list(RequestOutputKind))
def test_ranked_answers_come_once_all_are_complete(path: Path, kind: RequestOutputKind) -> None:
    params = SamplingParams(temperature=1.0, max_tokens=6, best_of=3, output_kind=kind, n=3)
    engine = make_engine(path)
    engine.add_request("0", "hello", params)

    outputs: list[RequestOutput] = []
    while engine.has_unfinished_requests():
        outputs += engine.step()

    assert [output.finished for output in outputs] == [True]
    totals = [one.cumulative_logprob or 0.0 for one in outputs[0].outputs]
    assert totals == sorted(totals, reverse=True)
    assert all(one.text and one.token_ids for one in outputs[0].outputs)


def test_a_bias_of_100_forces_a_token_and_one_of_minus_100_forbids_it(path: Path) -> None:
    engine = make_engine(path)
    prompts = make_prompts()[:3]
    plain = SamplingParams(temperature=0, max_tokens=8, ignore_eos=True)
    tokens = answer_all(engine, prompts, plain)[0].outputs[0].token_ids
    forced = plain.updated({"logit_bias": {9: 100}})
    forbidden = plain.updated({"logit_bias": dict.fromkeys(tokens, -100)})

    assert answer_all(engine, prompts, [plain, forced, plain])[1].outputs[0].token_ids == [9] * 8
    answer = answer_all(engine, prompts, forbidden)[0].outputs[0]
    assert set(answer.token_ids).isdisjoint(tokens)


def test_a_bias_outside_the_vocabulary_is_refused(path: Path) -> None:
    with pytest.raises(ValueError, match=f"not in the vocabulary of {VOCAB_SIZE} tokens"):
        answer_all(make_engine(path), ["hello"], SamplingParams(logit_bias={VOCAB_SIZE: 1.0}))
