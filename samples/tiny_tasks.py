"""Checkable text tasks for the tiny sample model.

Every task makes a question and its one right answer. A question belongs either to the training
stream or to the held-out set; a stable hash of its content decides, whatever its phrasing.
"""

from __future__ import annotations

import hashlib
import json
import random
import re
from collections.abc import Callable
from dataclasses import dataclass

from samples.tiny_words import (
    FIELD_VALUES,
    NUMBER_FIELDS,
    REAL_WORDS,
    TEMPLATES,
    vocabulary_words,
)

HELD_OUT_SHARES = 10
"""One of this many possible questions is held out."""

DIGITS = (1, 2, 2, 2)
"""Numbers of digits that an operand may have, each as often as it is listed."""

CONSONANTS = "bcdfghjklmnprstvwyz"
VOWELS = "aeiou"

# Each of these is one token, so the model cannot spell it.
_RESERVED = frozenset(vocabulary_words())
_REAL = frozenset(REAL_WORDS)
_REAL_VALUES = frozenset(value for values in FIELD_VALUES.values() for value in values)


@dataclass(frozen=True)
class Example:
    """One question with its only right answer.

    Attributes:
        task: Name of the task.
        content: What is asked, independent of the phrasing; decides the split.
        question: The question as a person would write it.
        answer: The exact answer.
    """

    task: str
    content: str
    question: str
    answer: str


def is_held_out(task: str, content: str) -> bool:
    """Tells whether a question is never trained on.

    Args:
        task: Name of the task.
        content: What is asked, independent of the phrasing.

    Returns:
        True for a fixed share of all possible questions (one in ``HELD_OUT_SHARES``).
    """
    digest = hashlib.sha256(f"{task}|{content}".encode()).digest()
    return int.from_bytes(digest[:8], "big") % HELD_OUT_SHARES == 0


def _number(rng: random.Random) -> int:
    length = rng.choice(DIGITS)
    return rng.randrange(0 if length == 1 else 10 ** (length - 1), 10**length)


def _made_up_word(rng: random.Random, shortest: int, longest: int) -> str:
    length = rng.randint(shortest, longest)
    if rng.random() < 0.5:
        return "".join(rng.choice("abcdefghijklmnopqrstuvwxyz") for _ in range(length))
    start = rng.randrange(2)
    return "".join(
        rng.choice(VOWELS if (start + index) % 2 else CONSONANTS) for index in range(length)
    )


def _word(rng: random.Random, shortest: int, longest: int) -> str:
    while True:
        if rng.random() < 0.25:
            word = rng.choice(REAL_WORDS)
        else:
            word = _made_up_word(rng, shortest, longest)
        if shortest <= len(word) <= longest and word not in _RESERVED:
            return word


def make_sum(rng: random.Random) -> Example:
    """Makes a sum of two numbers of up to two digits.

    Args:
        rng: Source of randomness.

    Returns:
        The example.
    """
    a, b = _number(rng), _number(rng)
    question = rng.choice(TEMPLATES["sum"]).format(a=a, b=b)
    return Example("sum", f"{min(a, b)}+{max(a, b)}", question, str(a + b))


def make_difference(rng: random.Random) -> Example:
    """Makes a difference of two numbers of up to two digits; the answer may be negative.

    Args:
        rng: Source of randomness.

    Returns:
        The example.
    """
    a, b = _number(rng), _number(rng)
    question = rng.choice(TEMPLATES["difference"]).format(a=a, b=b)
    return Example("difference", f"{a}-{b}", question, str(a - b))


def make_reverse(rng: random.Random) -> Example:
    """Makes a question for a word of three to seven letters written backwards.

    Args:
        rng: Source of randomness.

    Returns:
        The example.
    """
    word = _word(rng, 3, 7)
    question = rng.choice(TEMPLATES["reverse"]).format(word=word)
    return Example("reverse", word, question, word[::-1])


def make_sort(rng: random.Random) -> Example:
    """Makes a question for the sorted letters of a word of three to six letters.

    Args:
        rng: Source of randomness.

    Returns:
        The example.
    """
    word = _word(rng, 3, 6)
    answer = "".join(sorted(word))
    return Example("sort", answer, rng.choice(TEMPLATES["sort"]).format(word=word), answer)


def _field_value(rng: random.Random, field: str) -> str | int:
    if field in NUMBER_FIELDS:
        return rng.randrange(1, 100)
    if rng.random() < 0.5:
        return rng.choice(FIELD_VALUES[field])
    word = _made_up_word(rng, 3, 6)
    while word in _RESERVED:
        word = _made_up_word(rng, 3, 6)
    return word.capitalize() if field in ("name", "city") else word


def make_field(rng: random.Random) -> Example:
    """Makes a question for one field of a small JSON object, answered as JSON.

    Args:
        rng: Source of randomness.

    Returns:
        The example.
    """
    fields = rng.sample([*FIELD_VALUES, *NUMBER_FIELDS], rng.randint(2, 3))
    record = {field: _field_value(rng, field) for field in fields}
    wanted = rng.choice(fields)
    text = json.dumps(record)
    question = rng.choice(TEMPLATES["field"]).format(field=wanted, record=text)
    return Example("field", f"{wanted} {text}", question, json.dumps({wanted: record[wanted]}))


TASKS: dict[str, Callable[[random.Random], Example]] = {
    "sum": make_sum,
    "difference": make_difference,
    "reverse": make_reverse,
    "sort": make_sort,
    "field": make_field,
}


def draw(rng: random.Random, task: str, *, held_out: bool) -> Example:
    """Draws one example of a task from one side of the split.

    Args:
        rng: Source of randomness.
        task: Name of the task, a key of ``TASKS``.
        held_out: Whether to draw from the held-out questions or from the training questions.

    Returns:
        The example.
    """
    while True:
        example = TASKS[task](rng)
        if is_held_out(example.task, example.content) == held_out:
            return example


def draw_distinct(
    rng: random.Random, task: str, count: int, *, natural: bool = False
) -> list[Example]:
    """Draws held-out examples of a task that all ask for something else.

    Args:
        rng: Source of randomness.
        task: Name of the task.
        count: Number of examples.
        natural: Whether words have to be real English words.

    Returns:
        The examples.
    """
    chosen: dict[str, Example] = {}
    while len(chosen) < count:
        example = draw(rng, task, held_out=True)
        if natural and not _is_natural(example):
            continue
        chosen.setdefault(example.content, example)
    return list(chosen.values())


def _is_natural(example: Example) -> bool:
    if example.task in ("reverse", "sort"):
        return not set(re.findall(r"[a-z]+", example.question)).isdisjoint(_REAL)
    if example.task == "field":
        return all(
            word in _REAL_VALUES or word in _RESERVED or word.isdigit()
            for word in re.findall(r"\w+", example.question)
        )
    return True
