"""The stream of batches that the tiny sample model learns from."""

from __future__ import annotations

import random
from collections.abc import Iterator

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from samples.tiny_prompts import prompt_text
from samples.tiny_tasks import draw
from samples.tiny_tokenizer import EOS

TASK_WEIGHTS = {"sum": 6, "difference": 7, "reverse": 2, "sort": 2, "field": 3}
"""How often each task is drawn, relative to the others."""

IGNORED = -100
"""Label of a token that the model does not have to write."""

Pair = tuple[list[int], list[int]]
"""Input ids and labels of one text."""


def draw_training_text(rng: random.Random) -> tuple[str, str]:
    """Draws one training text, never from the held-out questions.

    Args:
        rng: Source of randomness.

    Returns:
        The prompt and the answer, with their special tokens.
    """
    turns = 2 if rng.random() < 0.08 else 1
    names = rng.choices(list(TASK_WEIGHTS), weights=list(TASK_WEIGHTS.values()), k=turns)
    examples = [draw(rng, name, held_out=False) for name in names]
    return prompt_text(rng, examples), examples[-1].answer + EOS


def encode(tokenizer: PreTrainedTokenizerFast, texts: list[tuple[str, str]]) -> list[Pair]:
    """Encodes prompts and answers.

    Args:
        tokenizer: The tokenizer.
        texts: Prompts and their answers, with special tokens.

    Returns:
        Input ids and labels of each text.
    """
    flat = [part for text in texts for part in text]
    parts = tokenizer(flat, add_special_tokens=False)["input_ids"]
    return [
        (prompt + answer, [IGNORED] * len(prompt) + answer)
        for prompt, answer in zip(parts[::2], parts[1::2], strict=True)
    ]


def pad_batch(pairs: list[Pair], pad_id: int) -> tuple[Tensor, Tensor]:
    """Pads a batch on the right to one length.

    Args:
        pairs: Input ids and labels of each text.
        pad_id: The id to pad the inputs with.

    Returns:
        The input ids and the labels.
    """
    width = max(len(ids) for ids, _ in pairs)
    ids = [row + [pad_id] * (width - len(row)) for row, _ in pairs]
    labels = [row + [IGNORED] * (width - len(row)) for _, row in pairs]
    return torch.tensor(ids), torch.tensor(labels)


def training_batches(
    tokenizer: PreTrainedTokenizerFast, size: int, seed: int
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yields batches of texts of about the same length, without end.

    Args:
        tokenizer: The tokenizer.
        size: Number of texts in a batch.
        seed: Seed of the texts.

    Yields:
        The input ids and the labels of one batch.
    """
    rng = random.Random(seed)
    while True:
        texts = [draw_training_text(rng) for _ in range(size * 16)]
        pairs = sorted(encode(tokenizer, texts), key=lambda pair: len(pair[0]))
        batches = [pairs[start : start + size] for start in range(0, len(pairs), size)]
        rng.shuffle(batches)
        for batch in batches:
            yield pad_batch(batch, tokenizer.pad_token_id)
