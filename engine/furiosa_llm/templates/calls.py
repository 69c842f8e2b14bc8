"""What a template may call: methods and filters, each with the size of what it makes.

What is not named here is refused. Each function of a size is called with what the method or filter
gets: the value that it belongs to, and its arguments.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from jinja2.exceptions import SecurityError

from furiosa_llm.templates.sizes import (
    SIZE_OF_ITEM,
    TOO_LARGE,
    size_of,
    size_of_copy,
    size_of_format,
    size_of_items,
    size_of_percent,
)

Estimate = Callable[..., int]

_MAX_DIGITS = 4300  # of a number; Python reads no more of them in decimal
_MAX_PRECISION = 100
_MAX_NAME = 512  # characters
_MAX_DEPTH = 100  # of indented JSON
_MAX_TIME_FORMAT = 128  # characters; the C library pads what they ask for
_SIZE_OF_COMPARISON = 64
_LINE_ENDS = "\n\r\v\f\x1c\x1d\x1e\x85\u2028\u2029"
_KNOWN_MODULES = ("jinja2", "transformers", "furiosa_llm")


def size_of_call(callee: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> int:
    """Returns about how many characters a call makes or looks at.

    Raises:
        SecurityError: It is of something that a template may not call.
    """
    method = getattr(callee, "__wrapped__", callee)  # the sandbox wraps str.format
    name, owner = getattr(method, "__name__", ""), getattr(method, "__self__", None)
    for kind, methods in METHODS.items():
        if isinstance(owner, kind) and name in methods:
            return methods[name](owner, *args, **kwargs)
    if callee is not dict and not _is_known(callee):
        called = type(callee).__name__ if owner is None else type(owner).__name__
        raise SecurityError(f"it calls {name!r} of type {called}, which no template may")
    size = size_of(tuple(args)) + size_of(kwargs)
    return TOO_LARGE if name == "strftime_now" and size > _MAX_TIME_FORMAT else size


def _is_known(callee: Any) -> bool:
    """Tells whether a function or class is one that Jinja or transformers give to templates."""
    module = getattr(callee, "__module__", None)
    return isinstance(module, str) and module.split(".")[0] in _KNOWN_MODULES


def _width(number: object) -> int:
    return max(number, 0) if isinstance(number, int) else 0


def _text_width(value: object) -> int:
    return _width(value) if isinstance(value, int) else size_of(value)


def _num_lines(text: str) -> int:
    return 1 + sum(map(text.count, _LINE_ENDS))


def _of_nothing(_value: object, *_args: object, **_kwargs: object) -> int:
    return 0


def _of_arguments(_value: object, *args: object) -> int:
    return size_of(args)


def _of_text(value: object, *args: object, **_kwargs: object) -> int:
    return size_of(value) + size_of(args)


def _of_slow_text(value: object, *_args: object) -> int:
    return 16 * size_of(value)


def _of_search(text: object, sought: object = "", *_range: object) -> int:
    # From the end, or for one of many characters, each place may be compared with all of them.
    return size_of(text) * (1 + size_of(sought) // 16)


def _of_split(text: str, sep: str | None = None, maxsplit: int = -1) -> int:
    pieces = len(text) // 2 if sep is None else text.count(sep)
    if maxsplit >= 0:
        pieces = min(pieces, maxsplit)
    return len(text) + SIZE_OF_ITEM * (pieces + 1)


def _of_split_from_end(text: str, sep: str | None = None, maxsplit: int = -1) -> int:
    return _of_search(text, sep) + _of_split(text, sep, maxsplit)


def _of_lines(text: str, *_keepends: bool, **_named: bool) -> int:
    return len(text) + SIZE_OF_ITEM * _num_lines(text)


def _of_padded(value: object, width: int = 80, *_fillchar: str) -> int:
    return size_of(value) + _width(width)


def _of_replaced(value: object, old: Any, new: Any, *_count: int, **_named: int) -> int:
    is_text = isinstance(value, str) and isinstance(old, str)
    found = value.count(old) if is_text else size_of(value)  # type: ignore[attr-defined]
    return size_of(value) + found * size_of(new)


def _of_joined(separator: str, pieces: Any) -> int:
    num_pieces = len(pieces) if hasattr(pieces, "__len__") else 0
    return size_of(separator) * num_pieces + size_of(pieces) + size_of_items(pieces)


def _of_list(value: object, *_flags: object, attribute: object = None, **_others: object) -> int:
    long = any(isinstance(name, str) and len(name) > _MAX_NAME for name in (*_flags, attribute))
    num_items = len(value) if hasattr(value, "__len__") else 0
    return TOO_LARGE if long else size_of(value) + _SIZE_OF_COMPARISON * num_items


def _of_attribute(_value: object, name: object = "", *_args: object, **kwargs: object) -> int:
    names = (name, kwargs.get("attribute"))
    return TOO_LARGE if any(isinstance(one, str) and len(one) > _MAX_NAME for one in names) else 0


def _of_rows(value: object, number: int = 0, fill_with: object = None, **named: int) -> int:
    rows = _width(number) + sum(map(_width, named.values()))
    return size_of_items(value) + rows * (SIZE_OF_ITEM + size_of(fill_with))


def _of_joined_filter(value: object, d: str = "", attribute: object = None) -> int:
    return max(_of_attribute(value, attribute), _of_joined(d, value))


def _of_sum(value: object, attribute: object = None, start: object = 0) -> int:
    if not isinstance(start, int | float):
        raise SecurityError(f"it sums a {type(start).__name__}, and sum takes numbers only")
    return _of_list(value, attribute)


def _of_indented(value: object, width: object = 4, *_flags: object, **_named: object) -> int:
    num_lines = _num_lines(value) if isinstance(value, str) else size_of(value)
    return size_of(value) + num_lines * (SIZE_OF_ITEM + _text_width(width))


def _of_percent(text: object, /, *args: object, **kwargs: object) -> int:
    return size_of_percent(text, kwargs or args) if isinstance(text, str) else TOO_LARGE


def _of_json(value: object, *args: object, **kwargs: object) -> int:
    width = sum(map(_text_width, (*args, *kwargs.values())))
    return 2 * size_of(value, 4 + width * _MAX_DEPTH)


def _of_integer(value: object, *_args: object, **_kwargs: object) -> int:
    return TOO_LARGE if isinstance(value, str) and len(value) > _MAX_DIGITS else 0


def _of_rounded(_value: object, precision: int = 0, *_method: str, **_named: str) -> int:
    return TOO_LARGE if abs(precision) > _MAX_PRECISION else 0


def _named(names: str, estimate: Estimate) -> dict[str, Estimate]:
    return dict.fromkeys(names.split(), estimate)


_OF_SEQUENCE = {**_named("count index", _of_text), "copy": size_of_items}
METHODS: dict[type, dict[str, Estimate]] = {
    str: {
        **_named("capitalize casefold lower swapcase title upper", _of_text),
        **_named("count find index partition removeprefix removesuffix", _of_text),
        **_named("isalnum isalpha isascii isdecimal isdigit isidentifier islower", _of_text),
        **_named("isnumeric isprintable isspace istitle isupper", _of_text),
        **_named("startswith endswith", _of_arguments),
        **_named("strip lstrip rstrip rfind rindex rpartition", _of_search),
        **_named("center ljust rjust zfill", _of_padded),
        "format": size_of_format,
        "join": _of_joined,
        "replace": _of_replaced,
        "rsplit": _of_split_from_end,
        "split": _of_split,
        "splitlines": _of_lines,
    },
    dict: {"copy": size_of_items, "get": _of_arguments, **_named("items keys values", _of_nothing)},
    list: _OF_SEQUENCE,
    tuple: _OF_SEQUENCE,
}
FILTERS: dict[str, Estimate] = {
    **_named("abs attr count d default filesizeformat first float items last", _of_nothing),
    **_named("length random", _of_nothing),
    **_named("map reject rejectattr select selectattr", _of_attribute),
    **_named("capitalize e escape forceescape lower safe string truncate upper", _of_text),
    **_named("title wordcount", _of_slow_text),
    **_named("dictsort groupby list max min sort unique", _of_list),
    **_named("batch slice", _of_rows),
    "center": _of_padded,
    "format": _of_percent,
    "indent": _of_indented,
    "int": _of_integer,
    "join": _of_joined_filter,
    "replace": _of_replaced,
    "reverse": size_of_copy,
    "round": _of_rounded,
    "sum": _of_sum,
    "tojson": _of_json,
    "trim": _of_search,
}
# Filters that go through all of what comes one by one.
GATHERING = (
    "batch",
    "dictsort",
    "groupby",
    "join",
    "list",
    "max",
    "min",
    "reverse",
    "slice",
    "sort",
    "sum",
    "unique",
)
