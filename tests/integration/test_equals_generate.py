"""Float32 greedy tokens equal those of transformers.generate, architecture by architecture."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from furiosa_llm.config import EngineArgs
from furiosa_llm.errors import ModelLoadError
from furiosa_llm.llm_engine import LLMEngine
from furiosa_llm.sampling_params import SamplingParams
from tests.checkpoints import CONFIGS, VOCAB_SIZE
from tests.factories import answer_all

REFUSALS = {
    "Doge": "DogeForCausalLM is not supported: DogeAttention adds something to the mask",
    "FalconAlibi": "FalconForCausalLM biases its scores by distance (alibi)",
    "Mamba": "MambaForCausalLM is a recurrent model",
    "T5": "T5ForConditionalGeneration is an encoder-decoder model",
}
NUM_NEW_TOKENS = 24


def reference(path: Path, prompts: list[list[int]]) -> list[list[int]]:
    model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)
    model.generation_config.forced_eos_token_id = None  # BART would end every answer with it
    answers = []
    for prompt in prompts:
        output = model.generate(
            torch.tensor([prompt]),
            attention_mask=torch.ones(1, len(prompt), dtype=torch.long),
            do_sample=False,
            max_new_tokens=NUM_NEW_TOKENS,
            min_new_tokens=NUM_NEW_TOKENS,
        )
        answers.append(output[0, len(prompt) :].tolist())
    return answers


@pytest.mark.parametrize("name", [name for name in CONFIGS if name not in REFUSALS])
def test_greedy_tokens_equal_those_of_generate(
    name: str, checkpoint: Callable[[str], Path]
) -> None:
    path = checkpoint(name)
    draw = random.Random(name)
    prompts = [
        [draw.randrange(3, VOCAB_SIZE) for _ in range(length)] for length in (1, 7, 33, 70, 16, 129)
    ]
    # A small budget: prompts are cut into chunks and mixed with decodes.
    engine = LLMEngine.from_engine_args(
        EngineArgs(
            model=str(path),
            max_num_seqs=4,
            max_num_batched_tokens=48,
            paged_attention_num_blocks=64,
            paged_attention_block_size=16,
        )
    )
    params = SamplingParams(temperature=0, max_tokens=NUM_NEW_TOKENS, min_tokens=NUM_NEW_TOKENS)

    outputs = answer_all(engine, prompts, params)

    assert [output.outputs[0].token_ids for output in outputs] == reference(path, prompts)


@pytest.mark.parametrize(("name", "reason"), REFUSALS.items())
def test_an_unsupported_architecture_is_refused_by_name(
    name: str, reason: str, checkpoint: Callable[[str], Path]
) -> None:
    with pytest.raises(ModelLoadError) as refusal:
        LLMEngine.from_engine_args(EngineArgs(model=str(checkpoint(name))))

    assert reason in str(refusal.value)
    assert "\n" not in str(refusal.value)
