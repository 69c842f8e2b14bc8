"""What the engine makes of steps, on a device that is a script."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping
from typing import Any, cast

import pytest

from furiosa_llm.config import CacheConfig, ModelInfo
from furiosa_llm.engine_core import EngineCore
from furiosa_llm.engine_limits import EngineLimits
from furiosa_llm.errors import NonFiniteLogitsError, RequestError, StructureFailedError
from furiosa_llm.outputs import RequestOutput
from furiosa_llm.request import TokenizedPrompt
from furiosa_llm.sampling_params import SamplingParams
from furiosa_llm.scheduler_config import SchedulerConfig
from furiosa_llm.scheduler_output import SchedulerOutput, StepResult
from furiosa_llm.tokenization import Tokenizer

END = 2
Device = Callable[[SchedulerOutput], StepResult]


class LetterTokenizer:
    """Every token is a letter."""

    def decode(self, token_ids: list[int], *, skip_special_tokens: bool) -> str:
        return "".join(chr(token_id) for token_id in token_ids)


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


def make_core(device: Device, **changes: Any) -> EngineCore:
    options: dict[str, Any] = {"max_num_seqs": 8, "max_num_batched_tokens": 64}
    return EngineCore(
        executor=ScriptedExecutor(device),
        tokenizer=cast(Tokenizer, LetterTokenizer()),
        limits=EngineLimits(
            model_info=ModelInfo(
                max_model_len=4096, vocab_size=1000, eos_token_ids=frozenset({END})
            ),
            cache_config=CacheConfig(num_blocks=64, block_size=16),
            scheduler_config=SchedulerConfig(**{**options, **changes}),
        ),
    )


def add(core: EngineCore, name: str, params: SamplingParams) -> None:
    core.add(
        TokenizedPrompt(
            request_id=name,
            text=None,
            prompt_token_ids=[100, 101, 102],
            sampling_params=params,
            max_tokens=params.max_tokens or 16,
            arrival_time=0.0,
        )
    )


def run(core: EngineCore) -> dict[str, RequestOutput]:
    last: dict[str, RequestOutput] = {}
    while core.num_unfinished:
        last.update((output.request_id, output) for output in core.step())
    core.close()
    return last


def fails_after_its_end(error: RequestError) -> Device:
    """A device on which the first answer has one token and its end, and no step after that."""

    def device(step: SchedulerOutput) -> StepResult:
        token_ids: dict[int, int] = {}
        failures: Mapping[int, RequestError] = {}
        for share in step.requests:
            assert share.sampling is not None
            token_ids[share.request_id] = ord("a")
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

    outputs = run(core)

    assert outputs["ends"].outputs[0].finish_reason == "stop"
    assert outputs["ends"].error is None
    assert outputs["goes on"].outputs[0].text == "a" * 8
    assert outputs["goes on"].metrics.num_preemptions == 0
