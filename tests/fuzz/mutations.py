"""Makes broken inputs out of good ones."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence

_TEXTS = (
    *'{}[]",:\n\r\t\0 ',
    *('""', "\\", "\\u0000", "\\ud800", "\\udfff\\ud800", "\ufeff", "\u2028", "null", "true"),
    *("NaN", "-Infinity", "1e400", "-0.0", "1e-400", "9" * 30, "9" * 400, "0x1", "1_0"),
    *('"prompt":', '"messages":', '"sampling_params":', '"id":', '"body":', '"text":1,'),
    *("[" * 120, '{"a":' * 120, "]" * 120, "x" * 3000, "}\n{", '"a":1,' * 50),
)
_NO_TEXTS = (b"\xff", b"\xed\xa0\x80", b"\xf4\x90\x80\x80", b"\xc0\x80")
PIECES = (*(text.encode() for text in _TEXTS), *_NO_TEXTS)
VALUES: tuple[object, ...] = (
    *(None, True, False, 0, 1, -1, 2**31, 2**63 - 1, 2**63, -(2**63), 2**200, 0.0, -0.5, 1e308),
    *(float("inf"), float("nan"), 5e-324, "", "1", "x" * 5000, "\ud800", "\0", b"x", [], {}, ()),
    *([1], ["a"], [None], [[1, 2]], [1.5, "x"], ["s"] * 100, list(range(5000)), {"": 1}),
    *({"5": 1}, {"regex": "("}, {"json": {}}, {"choice": ["a", ""]}, {"a": {"b": [{}]}}),
)


def mutated(content: bytes, corpus: Sequence[bytes], draws: random.Random) -> bytes:
    """Changes an input in one to eight places."""
    data = bytearray(content)
    for _ in range(draws.randint(1, 8)):
        start = draws.randint(0, len(data))
        stop = min(len(data), start + draws.choice((0, 1, 2, 8, 64)))
        match draws.randint(0, 5):
            case 0:
                data[start:stop] = b""
            case 1:
                data[start:stop] = draws.choice(PIECES)
            case 2:
                data[start:start] = draws.choice(PIECES)
            case 3:
                data[start:stop] = draws.randbytes(stop - start)
            case 4:
                other = draws.choice(corpus)
                data[start:stop] = other[draws.randint(0, len(other)) :]
            case 5:
                data[start:stop] = data[start:stop] * draws.randint(2, 9)
    return bytes(data[:20_000])


def random_params(names: Sequence[str], draws: random.Random) -> dict[str, object]:
    """Draws values, most of them wrong, for some parameters."""
    chosen = draws.sample(names, draws.randint(1, 4))
    return {name: _value(draws) for name in chosen}


def _value(draws: random.Random) -> object:
    value = draws.choice(VALUES)
    match draws.randint(0, 9):
        case 0:
            return [value, draws.choice(VALUES)]
        case 1:
            return {json.dumps(draws.randint(-9, 9)): value, "x": draws.choice(VALUES)}
        case 2:
            return draws.uniform(-3, 3)
        case 3:
            return draws.randint(-2, 30)
    return value
