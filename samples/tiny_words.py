"""The words of the tiny tasks: what their questions say and what they ask about."""

from __future__ import annotations

import re

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

SYSTEM_PROMPTS = (
    "You are a helpful assistant.",
    "Answer briefly.",
    "Give only the answer.",
    "You are a careful assistant. Give only the answer.",
)

TEMPLATES: dict[str, tuple[str, ...]] = {
    "sum": (
        "What is {a} + {b}?",
        "Add {a} and {b}.",
        "Compute {a} + {b}.",
    ),
    "difference": (
        "What is {a} - {b}?",
        "Subtract {b} from {a}.",
        "Compute {a} - {b}.",
    ),
    "reverse": (
        "Reverse the word {word}.",
        "Write {word} backwards.",
        "Spell the word {word} in reverse.",
    ),
    "sort": (
        "Sort the letters of {word}.",
        "Put the letters of {word} in alphabetical order.",
    ),
    "field": (
        "Give the {field} of {record} as JSON.",
        "Extract the {field} from {record} as JSON.",
    ),
}
"""Phrasings of each task; the one to use is drawn for every question."""


def vocabulary_words() -> list[str]:
    """Lists the words that phrase the tasks; the tokenizer makes each of them one token.

    Returns:
        The words, sorted, without duplicates.
    """
    templates = [template for group in TEMPLATES.values() for template in group]
    text = " ".join((*templates, *SYSTEM_PROMPTS, *FIELD_VALUES, *NUMBER_FIELDS))
    text = re.sub(r"\{\w+\}", " ", text) + " Question Answer"
    return sorted(set(re.findall(r"[A-Za-z]{2,}", text)))
