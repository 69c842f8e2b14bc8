"""How large a text or list becomes that a template is about to make.

All sizes are in characters. What takes longer or more memory than so many characters counts as more
of them.
"""

from __future__ import annotations

import re
from collections.abc import Collection, ItemsView
from string import Formatter
from typing import Any, cast

from jinja2.exceptions import SecurityError
from jinja2.utils import Namespace

TOO_LARGE = 1 << 62  # a size that no limit allows
SIZE_OF_ITEM = 32  # a list takes more memory than a text as long

_MAX_POWER_BITS = 4096
_MAX_PRODUCT_BITS = 1 << 16
_MAX_FORMAT_CHARACTERS = 1 << 20
_SIZE_OF_NUMBER = 24
_WIDTH = re.compile(r"\d{1,5}")
_LONG_WIDTH = re.compile(r"\d{6}")
_LONG_PERCENT_WIDTH = re.compile(r"%[#0\- +.\d]*(?:\d{6}|\*)")
_LONG_NAMED_WIDTH = re.compile(r"[%)][#0\- +.\d]*(?:\d{6}|\*)")
_VIEWS: tuple[type, ...] = (type({}.keys()), type({}.values()))
_PAIRS: type = type({}.items())


def size_of(value: object, size_of_part: int = 4, seen: dict[int, int] | None = None) -> int:
    """Returns about how many characters a value has as text, in all places where it stands.

    Args:
        value: Anything that a template knows.
        size_of_part: How many characters stand between two parts of a list.
        seen: The sizes of lists that are known already.

    Raises:
        RecursionError: It is nested too deeply.
    """
    if isinstance(value, str):
        return len(value)
    parts = _parts(value)
    if parts is None:
        return value.bit_length() // 3 + 1 if isinstance(value, int) else _SIZE_OF_NUMBER
    if not parts:
        return 2
    seen = {} if seen is None else seen
    size = seen.get(id(value))  # the parts are alive while the value is
    if size is None:
        size = 2 + size_of_part * len(parts)
        for part in parts:
            size += len(part) if isinstance(part, str) else size_of(part, size_of_part, seen)
        seen[id(value)] = size
    return size


def _parts(value: Any) -> Collection[object] | None:
    kind = type(value)
    if kind is list or kind is tuple:
        return cast("Collection[object]", value)
    if kind is dict:
        return (*value, *value.values())
    if value is None or kind in (int, bool, float):
        return None
    if isinstance(value, _PAIRS):  # whose pairs are made anew each time, and are gone at once
        return tuple(part for pair in cast("ItemsView[object, object]", value) for part in pair)
    if isinstance(value, (list, tuple, range, *_VIEWS)):  # also of kinds of Jinja's own
        return cast("Collection[object]", value)
    if isinstance(value, dict):
        return (*value, *value.values())
    if isinstance(value, Namespace):
        return (object.__getattribute__(value, "_Namespace__attrs"),)
    return None


def size_of_items(value: object) -> int:
    """Returns the size of a list of what is in a value, without the size of each."""
    return SIZE_OF_ITEM * len(value) if hasattr(value, "__len__") else 0


def size_of_copy(value: object) -> int:
    """Returns the size of a copy of a text, or of a list, whose items are not copied."""
    return len(value) if isinstance(value, str) else size_of_items(value)


def size_of_result(operator: str, left: Any, right: Any) -> int:
    """Returns the size of what an operator makes."""
    if operator == "+":
        return size_of_copy(left) + size_of_copy(right)
    if operator == "%":
        return size_of_percent(left, right) if isinstance(left, str) else 0
    if isinstance(left, int) and isinstance(right, int):
        if operator == "**":
            return TOO_LARGE if left.bit_length() * right > _MAX_POWER_BITS else 0
        bits = left.bit_length() + right.bit_length()
        return TOO_LARGE if bits > _MAX_PRODUCT_BITS else 0
    for one, other in ((left, right), (right, left)):
        if isinstance(other, int):
            return size_of_copy(one) * max(other, 0)
    return 0


def size_of_percent(text: str, values: object) -> int:
    """Returns the size of `text % values`."""
    pattern = _LONG_NAMED_WIDTH if "%(" in text else _LONG_PERCENT_WIDTH
    if len(text) > _MAX_FORMAT_CHARACTERS or pattern.search(text):
        return TOO_LARGE
    width = max(map(int, _WIDTH.findall(text)), default=0)
    return len(text) + text.count("%") * (_SIZE_OF_NUMBER + width + size_of(values))


def size_of_format(text: str, /, *args: object, **kwargs: object) -> int:
    """Returns the size of `text.format(...)`.

    Raises:
        SecurityError: A width stands in a value.
    """
    if len(text) > _MAX_FORMAT_CHARACTERS:
        return TOO_LARGE
    size_of_values = size_of(args) + size_of(kwargs)
    size = len(text)
    for _, name, width, _ in Formatter().parse(text):
        if name is None:
            continue
        if "{" in (width or ""):
            raise SecurityError(f"it formats with {width!r}, a width that stands in a value")
        if _LONG_WIDTH.search(width or ""):
            return TOO_LARGE
        size += _SIZE_OF_NUMBER + size_of_values + sum(map(int, _WIDTH.findall(width or "")))
    return size
