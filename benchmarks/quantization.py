"""Measures what `--quantization int8` costs the embedded model: right answers, and divergence.

python -m benchmarks.quantization

The divergence is that of Kullback and Leibler, of the distribution of the next token in float32
from that with 8 bits, in nats, at every token of held-out prompts and their right answers.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
from collections.abc import Sequence
from pathlib import Path

import torch

from furiosa_llm.config import EngineArgs
from furiosa_llm.llm_engine import LLMEngine
from furiosa_llm.modeling import paged_attention
from furiosa_llm.modeling.cpu.attention import CpuAttention
from furiosa_llm.modeling.cpu.core_threads import CoreThreads
from furiosa_llm.modeling.cpu.layer_cache import LayerCache
from furiosa_llm.modeling.loader import LoadedModel, load_model
from furiosa_llm.modeling.paged_attention import CurrentStep
from furiosa_llm.modeling.step_layout import StepLayout
from furiosa_llm.sampling_params import RequestOutputKind, SamplingParams
from furiosa_llm.tokenization import Tokenizer
from samples.tiny_prompts import prompt_text
from samples.tiny_tasks import TASKS, Example, draw_distinct

MODEL = Path(__file__).parents[1] / "samples" / "tiny-llama"
RESULT = Path(__file__).parent / "results" / "quantization.json"
PRECISIONS: dict[str, str | None] = {"float32": None, "int8": "int8"}
_SEED = 3
_CONTEXT = 256


def main() -> None:
    """Prints the result and writes it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--num-prompts", type=int, default=2000, metavar="N")
    parser.add_argument("--output", type=Path, default=RESULT)
    args = parser.parse_args()
    draw = random.Random(_SEED)
    examples = [
        e for task in TASKS for e in draw_distinct(draw, task, args.num_prompts // len(TASKS))
    ]
    prompts = [prompt_text(draw, [example]) for example in examples]
    divergences = measure_divergences(examples[::10], prompts[::10])
    result = {
        "model": MODEL.name,
        "num_prompts": len(prompts),
        "right_answers": {
            name: count_right(examples, prompts, quantization)
            for name, quantization in PRECISIONS.items()
        },
        "num_tokens_compared": len(divergences),
        "mean_divergence": statistics.fmean(divergences),
        "largest_divergence": max(divergences),
    }
    args.output.write_text(json.dumps(result, indent=2) + "\n")
    print(json.dumps(result, indent=2))


def count_right(
    examples: Sequence[Example], prompts: Sequence[str], quantization: str | None
) -> int:
    """Returns how many greedy answers are right to the letter."""
    engine = LLMEngine.from_engine_args(
        EngineArgs(model=str(MODEL), quantization=quantization, is_offline=True)
    )
    params = SamplingParams(temperature=0, max_tokens=32, output_kind=RequestOutputKind.FINAL)
    for index, prompt in enumerate(prompts):
        token_ids = engine.tokenizer.encode_rendered(prompt)
        engine.add_request(str(index), {"prompt_token_ids": token_ids}, params)
    texts: dict[int, str] = {}
    while engine.has_unfinished_requests():
        texts.update((int(out.request_id), out.outputs[0].text) for out in engine.step())
    return sum(texts[index] == example.answer for index, example in enumerate(examples))


def measure_divergences(examples: Sequence[Example], prompts: Sequence[str]) -> list[float]:
    """Returns the divergence at each token, in nats."""
    tokenizer = Tokenizer.from_engine_args(EngineArgs(model=str(MODEL)))
    exact, rounded = (
        load_model(str(MODEL), dtype=torch.float32).fused(
            quantization=quantization, deterministic=False
        )
        for quantization in PRECISIONS.values()
    )
    divergences: list[float] = []
    for example, prompt in zip(examples, prompts, strict=True):
        token_ids = tokenizer.encode_rendered(prompt + example.answer)
        expected, actual = (log_probabilities(model, token_ids) for model in (exact, rounded))
        divergences += (expected.exp() * (expected - actual)).sum(dim=-1).tolist()
    return divergences


@torch.inference_mode()
def log_probabilities(loaded: LoadedModel, token_ids: Sequence[int]) -> torch.Tensor:
    """Returns those of each next token, [T, V]."""
    num_tokens = len(token_ids)
    caches = [
        LayerCache.allocate(
            layer.shape, num_blocks=1, block_size=_CONTEXT, dtype=loaded.cache_dtype
        )
        for layer in loaded.layers
    ]
    layout = StepLayout(
        slot_mapping=torch.arange(num_tokens),
        query_start_loc=torch.tensor([0, num_tokens], dtype=torch.int32),
        seq_lens=torch.tensor([num_tokens], dtype=torch.int32),
        block_tables=torch.zeros(1, 1, dtype=torch.int32),
        tasks=torch.tensor([[0, i, i + 1] for i in range(num_tokens)], dtype=torch.int32),
    )
    paged_attention.bind(loaded.layers, caches, CurrentStep(layout), CpuAttention(CoreThreads(1)))
    logits: torch.Tensor = loaded.model(
        input_ids=torch.tensor([token_ids]),
        position_ids=torch.arange(num_tokens)[None],
        use_cache=False,
        logits_to_keep=torch.arange(num_tokens),
    ).logits
    return logits[0].log_softmax(dim=-1)


if __name__ == "__main__":
    main()
