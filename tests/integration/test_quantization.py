"""8 bits change few answers, and weights that others quantised are served or refused by name."""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from furiosa_llm.artifact_builder.build import build_artifact
from furiosa_llm.artifact_builder.options import BuildOptions
from furiosa_llm.config import EngineArgs
from furiosa_llm.errors import ModelLoadError
from furiosa_llm.llm_engine import LLMEngine
from furiosa_llm.sampling_params import SamplingParams
from samples.tiny_prompts import prompt_text
from samples.tiny_tasks import TASKS, draw_distinct
from tests.factories import answer_all

SAMPLE_MODEL = Path(__file__).parents[2] / "samples" / "tiny-llama"


def share_of_right_answers(quantization: str | None) -> float:
    draw = random.Random(2)
    examples = [example for task in TASKS for example in draw_distinct(draw, task, 60)]
    engine = LLMEngine.from_engine_args(
        EngineArgs(model=str(SAMPLE_MODEL), quantization=quantization)
    )
    prompts = [
        engine.tokenizer.encode_rendered(prompt_text(draw, [example])) for example in examples
    ]
    outputs = answer_all(engine, prompts, SamplingParams(temperature=0, max_tokens=32))
    right = [
        output.outputs[0].text == example.answer
        for output, example in zip(outputs, examples, strict=True)
    ]
    return sum(right) / len(right)


def test_eight_bits_leave_the_sample_model_as_accurate_within_half_a_point() -> None:
    exact, rounded = share_of_right_answers(None), share_of_right_answers("int8")

    assert exact > 0.98
    assert abs(rounded - exact) <= 0.005


@pytest.mark.parametrize("name", ["Qwen2", "Gemma3Text", "GPT2", "Phi3", "Qwen3Moe"])
def test_every_architecture_with_linear_layers_runs_with_eight_bits(
    name: str, checkpoint: Callable[[str], Path]
) -> None:
    engine = LLMEngine.from_engine_args(
        EngineArgs(model=str(checkpoint(name)), quantization="int8")
    )

    outputs = answer_all(engine, [[5, 6, 7], [8] * 40], SamplingParams(max_tokens=5, min_tokens=5))

    assert [len(output.outputs[0].token_ids) for output in outputs] == [5, 5]


def test_an_artifact_brings_its_quantization_along(
    checkpoint: Callable[[str], Path], tmp_path: Path
) -> None:
    path, artifact = checkpoint("Llama"), tmp_path / "artifact"
    build_artifact(str(path), artifact, BuildOptions(quantization="int8"))
    prompts, params = [[5, 6, 7], [8] * 40], SamplingParams(temperature=0, max_tokens=8, logprobs=1)

    def answers(model: Path, quantization: str | None) -> list[object]:
        engine = LLMEngine.from_engine_args(EngineArgs(model=str(model), quantization=quantization))
        return [output.outputs[0].logprobs for output in answer_all(engine, prompts, params)]

    assert answers(artifact, None) == answers(path, "int8") != answers(path, None)


@pytest.mark.parametrize(
    ("method", "settings"),
    [
        ("awq", {"bits": 4, "group_size": 32, "zero_point": True}),
        ("gptq", {"bits": 4, "group_size": 32}),
        ("bitsandbytes", {"load_in_4bit": True}),
        ("compressed-tensors", {}),
        ("fp8", {"weight_block_size": [32, 32]}),
    ],
)
def test_weights_quantised_by_others_are_refused_by_name_where_they_cannot_run(
    method: str, settings: dict[str, object], checkpoint: Callable[[str], Path], tmp_path: Path
) -> None:
    path = shutil.copytree(checkpoint("Llama"), tmp_path / "model")
    config = json.loads((path / "config.json").read_text())
    config["quantization_config"] = {"quant_method": method, **settings}
    (path / "config.json").write_text(json.dumps(config))

    with pytest.raises(ModelLoadError) as refusal:
        LLMEngine.from_engine_args(EngineArgs(model=str(path)))

    assert f"quantised with {method}" in str(refusal.value)
    assert "\n" not in str(refusal.value)
