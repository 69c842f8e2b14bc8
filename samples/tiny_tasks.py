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

HELD_OUT_SHARES = 10
"""One of this many possible questions is held out."""

CONSONANTS = "bcdfghjklmnprstvwyz"
VOWELS = "aeiou"

_WORDS = (
    "acorn amber anchor angle apple april arrow autumn bacon badge baker bamboo banana barrel "
    "basket beach beard berry bishop blanket bottle branch brave bread brick bridge broom brown "
    "brush bubble bucket butter button cabin cactus camel camera candle canvas captain carbon "
    "carpet carrot castle cellar chain chair chalk cheese cherry chess chicken circle citrus "
    "clock cloud clover coast cobra cocoa coffee comet copper coral cotton cousin cradle crane "
    "crayon cream cricket crown crystal curtain dagger daisy dance desert diamond dinner doctor "
    "dollar dolphin donkey dragon dream drum eagle earth elbow elm ember engine falcon farm "
    "feather fence fern ferry fiddle field finger flag flame flower flute fog forest fork fossil "
    "fox frog frost galaxy garden garlic giant ginger glacier glass globe glove goat grape grass "
    "guitar hammer harbor harvest hawk hazel helmet hermit hill honey horse house hunter ice "
    "island ivory jacket jaguar jar jelly jewel journey jungle kettle kitchen kite ladder lake "
    "lantern lemon leopard library lily lion lizard lotus magnet mango maple marble market meadow "
    "melon mirror moon morning mother mountain mouse music napkin needle nest nickel north oak "
    "ocean olive onion orange orbit orchard otter owl oyster paddle palace panda paper parrot "
    "pasta peach peanut pebble pencil pepper piano pigeon pillow pilot pine pirate pixel planet "
    "plum pocket poem pond potato prairie prince pumpkin puzzle quartz queen rabbit radio rain "
    "raven ribbon rice river robin rocket rose ruby saddle sail salmon sand scarf school sea "
    "shadow shark sheep shell ship silver sketch sky sleep snow sock spark spider spoon spring "
    "squid star stone storm stream sugar summer sun swan table tea temple thunder tiger timber "
    "toast tomato tower train tree tulip tunnel turtle valley velvet violet violin walnut water "
    "whale wheat willow window winter wolf wood yard year yellow zebra zero"
)
REAL_WORDS = tuple(_WORDS.split())

FIELD_VALUES: dict[str, tuple[str, ...]] = {
    "name": ("Ana", "Ben", "Carla", "David", "Elena", "Farid", "Greta", "Hugo", "Ines", "Jonas",
             "Kira", "Liam", "Mina", "Noah", "Olga", "Pablo", "Rosa", "Sven", "Tara", "Yuki"),
    "city": ("Oslo", "Lima", "Cairo", "Paris", "Quito", "Delhi", "Seoul", "Tokyo", "Bern", "Rome",
             "Accra", "Dakar", "Hanoi", "Kyoto", "Lagos", "Milan", "Porto", "Turin", "Wuhan"),
    "color": ("red", "blue", "green", "black", "white", "pink", "gray", "purple", "cyan", "gold"),
    "animal": ("cat", "dog", "cow", "hen", "duck", "mule", "crab", "seal", "toad", "wasp"),
}  # fmt: skip
NUMBER_FIELDS = ("age", "size")

SUM_DIGITS = (1, 2, 2, 2)
DIFFERENCE_DIGITS = (1, 2, 2, 2)
"""Numbers of digits that an operand may have, each as often as it is listed."""

SYSTEM_PROMPTS = (
    "You are a helpful assistant.",
    "Answer briefly.",
    "Give only the answer.",
    "You are a careful assistant. Give only the answer.",
)


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


# Tuples of phrasings; the one to use is drawn for every question.
SUM_TEMPLATES = (
    "What is {a} + {b}?",
    "Add {a} and {b}.",
    "Compute {a} + {b}.",
)
DIFFERENCE_TEMPLATES = (
    "What is {a} - {b}?",
    "Subtract {b} from {a}.",
    "Compute {a} - {b}.",
)
REVERSE_TEMPLATES = (
    "Reverse the word {word}.",
    "Write {word} backwards.",
    "Spell the word {word} in reverse.",
)
SORT_TEMPLATES = (
    "Sort the letters of {word}.",
    "Put the letters of {word} in alphabetical order.",
)
FIELD_TEMPLATES = (
    "Give the {field} of {record} as JSON.",
    "Extract the {field} from {record} as JSON.",
)
ALL_TEMPLATES = (
    *SUM_TEMPLATES,
    *DIFFERENCE_TEMPLATES,
    *REVERSE_TEMPLATES,
    *SORT_TEMPLATES,
    *FIELD_TEMPLATES,
)


def vocabulary_words() -> list[str]:
    """Lists the words that phrase the tasks; the tokenizer makes each of them one token.

    Returns:
        The words, sorted, without duplicates.
    """
    text = " ".join((*ALL_TEMPLATES, *SYSTEM_PROMPTS, *FIELD_VALUES, *NUMBER_FIELDS))
    text = re.sub(r"\{\w+\}", " ", text) + " Question Answer"
    return sorted(set(re.findall(r"[A-Za-z]{2,}", text)))


_RESERVED = frozenset(vocabulary_words())
_REAL = frozenset(REAL_WORDS)
_REAL_VALUES = frozenset(value for values in FIELD_VALUES.values() for value in values)


def _number(rng: random.Random, digits: tuple[int, ...]) -> int:
    length = rng.choice(digits)
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
    a, b = _number(rng, SUM_DIGITS), _number(rng, SUM_DIGITS)
    question = rng.choice(SUM_TEMPLATES).format(a=a, b=b)
    return Example("sum", f"{min(a, b)}+{max(a, b)}", question, str(a + b))


def make_difference(rng: random.Random) -> Example:
    """Makes a difference of two numbers of up to two digits; the answer may be negative.

    Args:
        rng: Source of randomness.

    Returns:
        The example.
    """
    a, b = _number(rng, DIFFERENCE_DIGITS), _number(rng, DIFFERENCE_DIGITS)
    question = rng.choice(DIFFERENCE_TEMPLATES).format(a=a, b=b)
    return Example("difference", f"{a}-{b}", question, str(a - b))


def make_reverse(rng: random.Random) -> Example:
    """Makes a question for a word of three to seven letters written backwards.

    Args:
        rng: Source of randomness.

    Returns:
        The example.
    """
    word = _word(rng, 3, 7)
    question = rng.choice(REVERSE_TEMPLATES).format(word=word)
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
    return Example("sort", answer, rng.choice(SORT_TEMPLATES).format(word=word), answer)


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
    question = rng.choice(FIELD_TEMPLATES).format(field=wanted, record=text)
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
