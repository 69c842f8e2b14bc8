"""Prompts for the tiny sample model: a question as plain text or as a chat."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from samples.tiny_tasks import TASKS, Example, draw_distinct
from samples.tiny_tokenizer import BOS, EOS
from samples.tiny_words import SYSTEM_PROMPTS

PLAIN_FRAMES = ("{question}\n", "Question: {question}\nAnswer: ", "{question}")

Message = dict[str, str]


def chat_messages(rng: random.Random, examples: Sequence[Example]) -> list[Message]:
    """Renders examples as a chat, some with a system message, that waits for the last answer.

    Args:
        rng: Source of randomness.
        examples: The questions of the chat; all but the last are answered in it.

    Returns:
        The messages.
    """
    messages: list[Message] = []
    if rng.random() < 0.25:
        messages.append({"role": "system", "content": rng.choice(SYSTEM_PROMPTS)})
    for example in examples:
        messages.append({"role": "user", "content": example.question})
        messages.append({"role": "assistant", "content": example.answer})
    return messages[:-1]


def chat_text(messages: Sequence[Message]) -> str:
    """Renders a chat as the chat template does, with the prompt for an answer.

    Args:
        messages: The messages.

    Returns:
        The text, with its special tokens.
    """
    ends = {"assistant": EOS}
    turns = [f"<|{m['role']}|>{m['content']}{ends.get(m['role'], '')}" for m in messages]
    return "".join([BOS, *turns, "<|assistant|>"])


def prompt_text(rng: random.Random, examples: Sequence[Example]) -> str:
    """Renders a prompt: several examples as a chat, one as a chat or as plain text.

    Args:
        rng: Source of randomness.
        examples: The questions; all but the last are answered in the prompt.

    Returns:
        The text, with its special tokens.
    """
    if len(examples) == 1 and rng.random() < 0.5:
        return BOS + rng.choice(PLAIN_FRAMES).format(question=examples[0].question)
    return chat_text(chat_messages(rng, examples))


def sample_rows(per_task: int = 16, seed: int = 2) -> list[dict[str, Any]]:
    """Makes the sample prompts from held-out questions, half of them plain, half of them chats.

    Args:
        per_task: Number of prompts of each task.
        seed: Seed of the draw.

    Returns:
        One row for each prompt, the tasks in turn.
    """
    rng = random.Random(seed)
    rows: list[dict[str, Any]] = []
    for task in TASKS:
        earlier = draw_distinct(rng, "sum", 1)
        for number, example in enumerate(draw_distinct(rng, task, per_task, natural=True), 1):
            row: dict[str, Any] = {"id": f"{task}-{number:02}"}
            if number % 2:
                row["prompt"] = PLAIN_FRAMES[number // 2 % 2].format(question=example.question)
            else:
                turns = [*earlier, example] if number == per_task else [example]
                row["messages"] = chat_messages(rng, turns)
            rows.append({**row, "expected": example.answer, "task": task})
    return [row for number in range(per_task) for row in rows[number::per_task]]


def write_rows(path: Path, rows: list[dict[str, Any]]) -> None:
    """Writes rows as JSON lines.

    Args:
        path: The file to write.
        rows: The rows.
    """
    lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in rows]
    path.write_text("".join(lines), encoding="utf-8")
