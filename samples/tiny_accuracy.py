"""How often the tiny sample model answers right."""

from __future__ import annotations

import random
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
)

from samples.tiny_prompts import prompt_text
from samples.tiny_tasks import TASKS, draw_distinct


@dataclass(frozen=True)
class Accuracy:
    """Number of right answers and of prompts for each task."""

    right: dict[str, int]
    total: dict[str, int]

    def rows(self) -> list[tuple[str, int, int]]:
        """Returns (task, right, total) for each task, then for all of them together."""
        rows = [(task, self.right[task], self.total[task]) for task in self.total]
        return [*rows, ("overall", sum(self.right.values()), sum(self.total.values()))]


@torch.no_grad()
def generate(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, prompts: list[str]
) -> list[str]:
    """Answers prompts greedily, all of them in one batch.

    Args:
        model: The model.
        tokenizer: Its tokenizer.
        prompts: The prompts, with their special tokens.

    Returns:
        The text that follows each prompt, up to the end-of-text token.
    """
    inputs = tokenizer(prompts, add_special_tokens=False, padding=True, return_tensors="pt")
    output = model.generate(
        input_ids=inputs["input_ids"],
        attention_mask=inputs["attention_mask"],
        max_new_tokens=32,
        do_sample=False,
    )
    answers = output[:, inputs["input_ids"].shape[1] :]
    return list(tokenizer.batch_decode(answers, skip_special_tokens=True))


def evaluate(checkpoint: Path, count: int, seed: int = 1) -> Accuracy:
    """Measures the answers of a checkpoint to held-out questions, all different.

    About half of the prompts are plain text, the others are chats.

    Args:
        checkpoint: Folder of the checkpoint.
        count: Number of prompts, shared evenly between the tasks.
        seed: Seed of the draw.

    Returns:
        The accuracy of greedy answers: an answer counts if it is right to the letter.
    """
    tokenizer = AutoTokenizer.from_pretrained(checkpoint)
    model = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32).eval()
    rng = random.Random(seed)
    right = dict.fromkeys(TASKS, 0)
    total = dict.fromkeys(TASKS, 0)
    for task in TASKS:
        examples = draw_distinct(rng, task, count // len(TASKS))
        for start in range(0, len(examples), 200):
            some = examples[start : start + 200]
            prompts = [prompt_text(rng, [example]) for example in some]
            for example, text in zip(some, generate(model, tokenizer, prompts), strict=True):
                total[task] += 1
                right[task] += text == example.answer
    return Accuracy(right, total)
