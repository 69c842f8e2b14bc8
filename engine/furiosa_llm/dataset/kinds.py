"""Finds one Arrow type for values whose types nobody declared.

A kind describes the values seen so far. Joining kinds is commutative and associative, so that
the type of a column depends on its values alone and not on how they were split into parts.
Kinds are themselves JSON values: parts keep them in their metadata.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TypeAlias, cast

import pyarrow as pa

# A name, a list of one kind (a list of such values), or an object of kinds (an object).
Kind: TypeAlias = "str | list[Kind] | dict[str, Kind]"

NULL = "null"
BOOL = "bool"
INT = "int"  # exact as a float64, too
BIG_INT = "big_int"
FLOAT = "float"
TEXT = "text"
JSON = "json"  # nothing in common: every value is written as JSON text

_EXACT = 2**53
_INT64 = 2**63
_MAX_FIELDS = 100
_MAX_DEPTH = 16
_TYPES = {
    NULL: pa.null(),
    BOOL: pa.bool_(),
    INT: pa.int64(),
    BIG_INT: pa.int64(),
    FLOAT: pa.float64(),
    TEXT: pa.string(),
    JSON: pa.string(),
}
_NUMBERS = {
    frozenset({INT, FLOAT}): FLOAT,
    frozenset({INT, BIG_INT}): BIG_INT,
}


def kind_of_all(values: Sequence[object]) -> Kind:
    """Returns the kind that all values have in common."""
    types = set(map(type, values))
    types.discard(type(None))
    if not types:
        return NULL
    if types == {str}:
        return TEXT
    if types == {float}:
        return FLOAT
    if types == {bool}:
        return BOOL
    if types == {int}:
        numbers = cast("list[int]", [value for value in values if value is not None])
        return join(_kind_of_int(min(numbers)), _kind_of_int(max(numbers)))
    return join_all(map(kind_of, values))


def kind_of(value: object) -> Kind:
    """Returns the kind of one value."""
    if value is None:
        return NULL
    if isinstance(value, bool):
        return BOOL
    if isinstance(value, int):
        return _kind_of_int(value)
    if isinstance(value, float):
        return FLOAT
    if isinstance(value, dict):
        return _object({str(name): kind_of(item) for name, item in value.items()})
    if isinstance(value, list | tuple):
        return _list(join_all(map(kind_of, value)))
    return TEXT  # dates and the like, which JSON makes texts of


def join_all(kinds: Iterable[Kind]) -> Kind:
    """Joins any number of kinds; of none it is null."""
    joined: Kind = NULL
    for kind in kinds:
        joined = join(joined, kind)
        if joined == JSON:
            break
    return joined


def join(first: Kind, second: Kind) -> Kind:
    """Returns the kind that describes the values of both."""
    match first, second:
        case "null", _:
            return second
        case _, "null":
            return first
        case str(), str():
            return first if first == second else _NUMBERS.get(frozenset({first, second}), JSON)
        case list(), list():
            return _list(join(first[0], second[0]))
        case dict(), dict():
            return _join_objects(first, second)
    return JSON


def arrow_type(kind: Kind) -> pa.DataType | None:
    """Returns the Arrow type of a kind; None where its values have to be JSON text."""
    return None if kind == JSON else _arrow_type(kind, depth=0)


def _arrow_type(kind: Kind, depth: int) -> pa.DataType | None:
    if depth > _MAX_DEPTH:
        return None
    match kind:
        case str():
            return _TYPES[kind]
        case list():
            item = _arrow_type(kind[0], depth + 1)
            return None if item is None else pa.list_(item)
        case dict():
            items = {name: _arrow_type(item, depth + 1) for name, item in kind.items()}
            # Parquet has no object without fields.
            if not items or None in items.values():
                return None
            return pa.struct(list(items.items()))


def _kind_of_int(value: int) -> Kind:
    if -_EXACT <= value <= _EXACT:
        return INT
    return BIG_INT if -_INT64 <= value < _INT64 else JSON


def _list(item: Kind) -> Kind:
    return JSON if item == JSON else [item]


def _object(fields: dict[str, Kind]) -> Kind:
    # Objects used as dictionaries, each with its own keys, would give a column for every key.
    return JSON if len(fields) > _MAX_FIELDS or JSON in fields.values() else fields


def _join_objects(first: dict[str, Kind], second: dict[str, Kind]) -> Kind:
    names: Iterable[str] = first
    if list(first) != list(second):
        names = sorted({*first, *second})  # an order that does not depend on who came first
    return _object({name: join(first.get(name, NULL), second.get(name, NULL)) for name in names})
