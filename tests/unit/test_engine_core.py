"""What the engine makes of steps, on a device that is a script."""

from __future__ import annotations

import dataclasses
import itertools
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from furiosa_llm.engine_core import EngineCore
from furiosa_llm.engine_limits import CacheConfig, EngineLimits, ModelInfo
from furiosa_llm.errors import (
    NonFiniteLogitsError,
    PromptFailedError,
    RequestError,
    StructureFailedError,
)
from furiosa_llm.outputs import RequestOutput
from furiosa_llm.request import TokenizedPrompt
from furiosa_llm.sampling_params import RequestOutputKind, SamplingParams
from furiosa_llm.scheduler_config import SchedulerConfig
from furiosa_llm.scheduler_output import SchedulerOutput, StepResult
from furiosa_llm.tokenization import Tokenizer
from tests.factories import sample_all

END = 2
PIECES = ("a", "b", "ab", "ba", "aab", "bbab", "c")
CACHE = CacheConfig(num_blocks=64, block_size=16)
Device = Callable[[SchedulerOutput], StepResult]


class PieceTokenizer:
    """Tokens 3 and up are the pieces."""

    def decode(self, token_ids: list[int], *, skip_special_tokens: bool) -> str:
        del skip_special_tokens
        return "".join(PIECES[token_id - 3] for token_id in token_ids)


class ScriptedExecutor:
    """Runs a step when it is asked for."""

    def __init__(self, device: Device) -> None:
        self._device = device
        self._steps: deque[SchedulerOutput] = deque()

    def submit(self, step: SchedulerOutput) -> None:
        self._steps.append(step)

    def collect(self) -> StepResult:
        return self._device(self._steps.popleft())

    def close(self) -> None:
        pass


def make_core(device: Device, *, cache: CacheConfig = CACHE, **changes: Any) -> EngineCore:
    options: dict[str, Any] = {"max_num_seqs": 8, "max_num_batched_tokens": 64}
    return EngineCore(
        executor=ScriptedExecutor(device),
        tokenizer=cast(Tokenizer, PieceTokenizer()),
        limits=EngineLimits(
            model_info=ModelInfo(
                max_model_len=4096, vocab_size=1000, eos_token_ids=frozenset({END})
            ),
            cache_config=cache,
            scheduler_config=SchedulerConfig(**{**options, **changes}),
        ),
    )


def add(core: EngineCore, name: str, params: SamplingParams, *, num_prompt_tokens: int = 3) -> None:
    core.add(
        TokenizedPrompt(
            request_id=name,
            text=None,
            prompt_token_ids=list(range(100, 100 + num_prompt_tokens)),
            sampling_params=params,
            max_tokens=params.max_tokens or 16,
            arrival_time=0.0,
        )
    )


def run(core: EngineCore) -> list[RequestOutput]:
    outputs = []
    while core.num_unfinished:
        outputs += core.step()
    core.close()
    return outputs


def fails_after_its_end(error: RequestError) -> Device:
    """A device on which the first answer has one token and its end, and no step after that."""

    def device(step: SchedulerOutput) -> StepResult:
        token_ids: dict[int, int] = {}
        failures: Mapping[int, RequestError] = {}
        for share in step.requests:
            assert share.sampling is not None
            token_ids[share.request_id] = 3
            if share.request_id == 0 and share.sampling.position >= 1:
                token_ids[0] = END
                failures = {0: error} if share.sampling.position > 1 else {}
        return StepResult(token_ids=token_ids, failures=failures)

    return device


@pytest.mark.parametrize(
    "error", [StructureFailedError("parser stopped"), NonFiniteLogitsError("not finite")], ids=repr
)
@pytest.mark.parametrize("num_steps_in_flight", [1, 2, 3])
def test_what_fails_after_the_end_of_an_answer_costs_the_others_nothing(
    error: RequestError, num_steps_in_flight: int
) -> None:
    core = make_core(fails_after_its_end(error), npu_queue_limit=num_steps_in_flight)
    params = SamplingParams(temperature=0, max_tokens=8)
    for name in ("ends", "goes on"):
        add(core, name, params)

    outputs = {output.request_id: output for output in run(core)}

    assert outputs["ends"].outputs[0].finish_reason == "stop"
    assert outputs["ends"].error is None
    assert outputs["goes on"].outputs[0].text == "a" * 8
    assert outputs["goes on"].metrics.num_preemptions == 0


def says(token_ids: Sequence[int]) -> Device:
    """A device that answers with these tokens."""

    def device(step: SchedulerOutput) -> StepResult:
        chosen = {}
        for share in step.requests:
            assert share.sampling is not None
            chosen[share.request_id] = token_ids[share.sampling.position]
        return StepResult(token_ids=chosen)

    return device


@given(
    token_ids=st.lists(st.integers(3, 2 + len(PIECES)), min_size=1, max_size=10),
    stop=st.lists(st.text(alphabet="ab", min_size=1, max_size=6), min_size=1, max_size=3),
    min_tokens=st.integers(0, 3),
    keeps_stop=st.booleans(),
)
def test_what_was_handed_out_of_an_answer_is_never_taken_back(
    token_ids: list[int], stop: list[str], min_tokens: int, keeps_stop: bool
) -> None:
    texts = {}
    for kind in RequestOutputKind:
        params = SamplingParams(
            temperature=0,
            max_tokens=len(token_ids),
            min_tokens=min(min_tokens, len(token_ids)),
            stop=tuple(stop),
            include_stop_str_in_output=keeps_stop,
            output_kind=kind,
        )
        core = make_core(says(token_ids))
        add(core, "r", params)
        texts[kind] = [output.outputs[0].text for output in run(core)]
    (final,) = texts[RequestOutputKind.FINAL]
    growing = texts[RequestOutputKind.CUMULATIVE]

    assert "".join(texts[RequestOutputKind.DELTA]) == growing[-1] == final
    assert all(later.startswith(text) for text, later in itertools.pairwise(growing))
    if not min_tokens and not keeps_stop:
        assert not any(text in final for text in stop)


def test_no_more_is_held_back_than_may_be_the_start_of_a_stop_string() -> None:
    params = SamplingParams(temperature=0, max_tokens=5, stop=("aab", "bc"))
    core = make_core(says([3, 3, 3, 9, 4]))
    add(core, "r", params)

    texts = [output.outputs[0].text for output in run(core)]

    assert texts == ["", "", "a", "aaac", "aaacb"]


def test_the_answers_to_a_prompt_with_a_seed_are_drawn_apart() -> None:
    seeds: set[int] = set()

    def device(step: SchedulerOutput) -> StepResult:
        seeds.update(share.sampling.seed for share in step.requests if share.sampling)
        return sample_all(step, END)

    core = make_core(device)
    add(core, "r", SamplingParams(temperature=1.0, n=3, seed=5))
    run(core)

    assert len(seeds) == 3


def test_what_was_computed_ahead_of_a_failure_is_computed_again() -> None:
    says_all = says([3, 4, 5, 6])

    def device(step: SchedulerOutput) -> StepResult:
        whole = says_all(step)
        first = step.requests[0]
        if first.request_id == 0 and first.sampling and first.sampling.position == 0:
            failures: dict[int, RequestError] = {0: PromptFailedError("broken")}
            return dataclasses.replace(whole.without({0}), failures=failures)
        return whole

    core = make_core(device)
    for name in ("fails", "reads what it wrote"):
        add(core, name, SamplingParams(temperature=0, max_tokens=4), num_prompt_tokens=20)

    outputs = {output.request_id: output for output in run(core)}

    assert outputs["fails"].error is not None
    assert outputs["reads what it wrote"].outputs[0].token_ids == [3, 4, 5, 6]


@pytest.mark.parametrize("is_to_blame", [False, True])
def test_after_a_step_that_failed_steps_run_ahead_again(is_to_blame: bool) -> None:
    num_failed = 0

    def device(step: SchedulerOutput) -> StepResult:
        nonlocal num_failed
        ends = {
            share.request_id: share.start_position + share.num_tokens for share in step.requests
        }
        if ends.get(0, 0) > 5 and (is_to_blame or not num_failed):
            num_failed += 1
            raise ValueError("failed")
        return sample_all(step, 3)

    core = make_core(device, npu_queue_limit=3)
    params = SamplingParams(temperature=0, max_tokens=12)
    for name in ("a", "b"):
        add(core, name, params)

    errors, nums_in_flight = {}, []
    while core.num_unfinished and num_failed < 10:
        for output in core.step():
            errors[output.request_id] = output.error
        nums_in_flight += [step.num_steps_in_flight for step in core.last_steps]

    assert (errors["a"] is not None, errors["b"]) == (is_to_blame, None)
    assert nums_in_flight.count(3) > 4


def test_a_prompt_that_gave_way_with_an_answer_begun_is_not_waiting() -> None:
    cache = CacheConfig(num_blocks=3, block_size=4, enable_prefix_caching=False)
    core = make_core(lambda step: sample_all(step, 3), cache=cache, npu_queue_limit=1)
    for name in ("a", "b"):
        add(core, name, SamplingParams(temperature=0, max_tokens=6))

    seen = []
    while core.num_unfinished:
        core.step()
        seen.append((core.num_waiting_prompt_tokens, core.waiting()))

    assert (3, []) in seen
    assert [names for _, names in seen if names] == []
