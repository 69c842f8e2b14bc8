"""A sandbox for Jinja templates in which none runs for ever or fills the memory.

Jinja's own keeps a template away from Python and from changing its values. This one also counts
what a template does, and looks at the size of a text or list before it is made.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from jinja2 import TemplateError, TemplateRuntimeError, nodes, pass_context
from jinja2.runtime import Context
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.visitor import NodeTransformer

from furiosa_llm.row_limits import (
    MAX_TEMPLATE_CHARACTERS,
    MAX_TEMPLATE_OPERATIONS,
    MAX_TEMPLATE_SECONDS,
)

# What a template can raise, whatever it is given.
RENDERING_ERRORS = (
    TemplateError,
    ArithmeticError,
    AttributeError,
    LookupError,
    TypeError,
    ValueError,
    RecursionError,
    MemoryError,
)

_MAX_POWER_BITS = 4096
_TEXTS_MADE = 16  # of the largest size, until a template has made enough
_LONG_WIDTH = re.compile(r"\d{6}")
_MAX_NUMBERS = {"slice": 100_000, "batch": 100_000, "tojson": 100}  # that a filter takes
_SIZE_OF_BIT = 64  # long numbers take longer to multiply than long texts to make
_SMALL = 512
_JOIN = "bounded_join"
# What may make much more text than it is given, as filters and as methods of a text.
_GROWING = (
    "center",
    "indent",
    "ljust",
    "rjust",
    "zfill",
    "expandtabs",
    "replace",
    "join",
    "format",
)


class TemplateTooCostlyError(TemplateRuntimeError):
    """A template does more than a row is worth."""


class BoundedContext(Context):
    """What one rendering knows, and how much it has done."""

    def __init__(self, *args: Any, **settings: Any) -> None:
        super().__init__(*args, **settings)
        self._num_operations = 0
        self._size_made = 0
        self._deadline = time.monotonic() + MAX_TEMPLATE_SECONDS

    def count_operation(self) -> None:
        """Counts a round of a loop or a call of a macro.

        Raises:
            TemplateTooCostlyError: They are too many, or took too long.
        """
        self._num_operations += 1
        if self._num_operations > MAX_TEMPLATE_OPERATIONS:
            raise TemplateTooCostlyError(
                f"it takes more than {MAX_TEMPLATE_OPERATIONS:,} rounds of loops or calls of macros"
            )
        if time.monotonic() > self._deadline:
            raise TemplateTooCostlyError(f"it takes longer than {MAX_TEMPLATE_SECONDS:g} seconds")

    def make(self, size: int) -> None:
        """Counts the characters of a text, or the items of a list, that is about to be made.

        Raises:
            TemplateTooCostlyError: It, or all of them together, would be too large.
        """
        _require_size(size)
        self._size_made += size
        if self._size_made > _TEXTS_MADE * MAX_TEMPLATE_CHARACTERS:
            raise TemplateTooCostlyError(
                f"it makes more than {_TEXTS_MADE} times {MAX_TEMPLATE_CHARACTERS:,} characters"
            )


class BoundedEnvironment(ImmutableSandboxedEnvironment):
    """A sandboxed environment whose templates are bounded in time and memory."""

    intercepted_binops = frozenset({"*", "**", "%", "+"})
    context_class = BoundedContext

    def __init__(self, *args: Any, **settings: Any) -> None:
        super().__init__(*args, **settings)
        filters, self.filters = self.filters, _CheckedFilters()
        for name, apply in {**filters, _JOIN: _joined}.items():
            self.filters[name] = apply

    @staticmethod
    def concat(pieces: Iterable[str]) -> str:
        """Puts together what a template, a block or a macro writes.

        Raises:
            TemplateTooCostlyError: It is too long.
        """
        texts = list(pieces)
        _require_size(sum(map(len, texts)))
        return "".join(texts)

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        """Calculates; what would be too large is refused before."""
        if operator == "+" and type(left) is str and type(right) is str:
            size = len(left) + len(right)
            if size > _SMALL:  # of small ones, no template makes enough to matter
                _own(context).make(size)
            return left + right
        _own(context).make(_size_of_result(operator, left, right))
        return super().call_binop(context, operator, left, right)

    def call(__self, __context: Context, __obj: Any, *args: Any, **kwargs: Any) -> Any:  # noqa: N805
        """Calls a function or a method; a text that would be too long is refused before."""
        method = getattr(__obj, "__wrapped__", __obj)  # the sandbox wraps str.format
        name, owner = getattr(method, "__name__", ""), getattr(method, "__self__", None)
        if name in _GROWING and isinstance(owner, str):
            _own(__context).make(_size_of_text(name, owner, args))
        return super().call(__context, __obj, *args, **kwargs)

    def _parse(self, source: str, name: str | None, filename: str | None) -> nodes.Template:
        template: nodes.Template = _Bounding().visit(super()._parse(source, name, filename))
        return template


class _Bounding(NodeTransformer):
    """Puts the count into every loop and macro, and the check into every `~`."""

    def visit_For(self, node: nodes.For) -> nodes.Node:  # noqa: N802
        return self._counted(node)

    def visit_Macro(self, node: nodes.Macro) -> nodes.Node:  # noqa: N802
        return self._counted(node)

    def visit_CallBlock(self, node: nodes.CallBlock) -> nodes.Node:  # noqa: N802
        return self._counted(node)

    def visit_Concat(self, node: nodes.Concat) -> nodes.Node:  # noqa: N802
        self.generic_visit(node)
        pieces = nodes.List(node.nodes, lineno=node.lineno)
        return nodes.Filter(pieces, _JOIN, [], [], None, None, lineno=node.lineno)

    def _counted(self, node: Any) -> nodes.Node:
        self.generic_visit(node)
        context = nodes.ContextReference(lineno=node.lineno)
        count = nodes.Getattr(context, "count_operation", "load", lineno=node.lineno)
        call = nodes.Call(count, [], [], None, None, lineno=node.lineno)
        node.body.insert(0, nodes.ExprStmt(call, lineno=node.lineno))
        return node  # type: ignore[no-any-return]


def _joined(pieces: Sequence[object]) -> str:
    return "".join(map(str, pieces))


class _CheckedFilters(dict[str, Any]):
    """Filters by name; each is wrapped when it is put in."""

    def __setitem__(self, name: str, apply: Callable[..., object]) -> None:
        super().__setitem__(name, _checked(name, apply))


def _checked(name: str, apply: Callable[..., object]) -> Callable[..., object]:
    """Wraps a filter, which may want to know of its surroundings, too."""
    wanted = getattr(apply, "jinja_pass_arg", None)

    @pass_context
    def apply_checked(context: Context, value: Any, *args: Any, **kwargs: Any) -> object:
        arguments = (*args, *kwargs.values())
        if name in ("join", _JOIN) and not isinstance(value, str):
            value = list(value)
            separator = next((arg for arg in arguments if isinstance(arg, str)), "")
            _own(context).make(_size_of_text(name, separator, (value,)))
        elif isinstance(value, str):
            _own(context).make(_size_of_text(name, value, arguments))
        numbers = [argument for argument in arguments if isinstance(argument, int)]
        if name in _MAX_NUMBERS and max(numbers, default=0) > _MAX_NUMBERS[name]:
            raise TemplateTooCostlyError(f"{name} takes numbers up to {_MAX_NUMBERS[name]:,}")
        if wanted is None:
            return apply(value, *args, **kwargs)
        surroundings = {
            "context": context,
            "eval_context": context.eval_ctx,
            "environment": context.environment,
        }
        return apply(surroundings[wanted.name], value, *args, **kwargs)

    return apply_checked


def _own(context: Context) -> BoundedContext:
    assert isinstance(context, BoundedContext), "the environment makes no other"
    return context


def _size_of_result(operator: str, left: Any, right: Any) -> int:
    """Returns about how many characters, items or bits the result has."""
    if operator == "**":
        if isinstance(left, int) and isinstance(right, int):
            is_large = left.bit_length() * right > _MAX_POWER_BITS
            return MAX_TEMPLATE_CHARACTERS + 1 if is_large else 0
        return 0
    if operator == "%":
        return _size_of_text("format", left, ()) if isinstance(left, str) else 0
    if operator == "+":
        return sum(len(one) for one in (left, right) if hasattr(one, "__len__"))
    for one, other in ((left, right), (right, left)):
        if hasattr(one, "__len__") and isinstance(other, int):
            return len(one) * other
    if isinstance(left, int) and isinstance(right, int):
        return _SIZE_OF_BIT * (left.bit_length() + right.bit_length())
    return 0


def _size_of_text(name: str, text: str, args: tuple[Any, ...]) -> int:
    """Returns about how many characters a filter or method makes of a text."""
    widths = [arg for arg in args if isinstance(arg, int)]
    texts = [arg for arg in args if isinstance(arg, str)]
    if name == "format":
        return MAX_TEMPLATE_CHARACTERS + 1 if _LONG_WIDTH.search(text) or "*" in text else 0
    if name == "replace" and len(texts) > 1:
        return len(text) + text.count(texts[0]) * len(texts[1])
    if name in ("join", _JOIN) and args and isinstance(args[0], list | tuple):
        return len(text) * len(args[0]) + sum(len(one) for one in args[0] if isinstance(one, str))
    if name in ("indent", "expandtabs"):
        marks = text.count("\n") + text.count("\t") + 1
        return len(text) + marks * (max(widths, default=8) + sum(map(len, texts)))
    return max([len(text), *widths])


def _require_size(size: int) -> None:
    if size > MAX_TEMPLATE_CHARACTERS:
        raise TemplateTooCostlyError(f"it makes more than {MAX_TEMPLATE_CHARACTERS:,} characters")
