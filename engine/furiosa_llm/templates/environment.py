"""A sandbox for Jinja templates in which none runs for ever or fills the memory.

Jinja's own keeps a template away from Python and from changing its values. This one also counts
what a template does, and looks at the size of a text or list before it is made. What a template may
call is listed, with the size of what it makes, in `calls`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

from jinja2 import (
    Template,
    TemplateError,
    TemplateSyntaxError,
    nodes,
    pass_context,
)
from jinja2.exceptions import SecurityError
from jinja2.runtime import Context, Macro
from jinja2.sandbox import ImmutableSandboxedEnvironment

from furiosa_llm.templates.calls import FILTERS, GATHERING, size_of_call
from furiosa_llm.templates.nodes import COMPARED, COMPARISONS, COUNT, JOIN, SLICE, bounded
from furiosa_llm.templates.sizes import size_of, size_of_copy, size_of_result
from furiosa_llm.templates.work import Work, require_size

# What a template can raise, whatever it is given.
RENDERING_ERRORS = (
    TemplateError,
    ArithmeticError,
    AttributeError,
    LookupError,
    TypeError,
    ValueError,
    RuntimeError,  # also of too deep a recursion
    MemoryError,
)

_SMALL = 512
_SCOPES = ("_loop_vars", "_block_vars")  # that Jinja adds to what a template gives to a call


class BoundedContext(Context):
    """What one rendering knows, and how much it has done."""

    def __init__(self, *args: Any, **settings: Any) -> None:
        super().__init__(*args, **settings)
        self.work = Work()

    def derived(self, locals: dict[str, Any] | None = None) -> Context:
        """Returns a context of a block, which goes on with the same count."""
        context = super().derived(locals)
        assert isinstance(context, BoundedContext), "the environment makes no other"
        context.work = self.work
        return context


class BoundedEnvironment(ImmutableSandboxedEnvironment):
    """A sandboxed environment whose templates are bounded in time and memory."""

    intercepted_binops = frozenset({"*", "**", "%", "+"})
    context_class = BoundedContext

    def __init__(self, *args: Any, **settings: Any) -> None:
        super().__init__(*args, **{"finalize": _written, **settings})
        filters, self.filters = self.filters, _CheckedFilters()
        for name, apply in filters.items():
            self.filters[name] = apply
        self.filters.update({COUNT: _counted, JOIN: _joined, SLICE: _cut, COMPARED: _compared})
        del self.globals["lipsum"]

    def from_string(self, source: str | nodes.Template, *args: Any, **settings: Any) -> Template:
        """Compiles a template.

        Raises:
            TemplateSyntaxError: It cannot be parsed, is nested too deeply, or has constants that
                Python refuses.
        """
        try:
            return super().from_string(source, *args, **settings)
        except (SyntaxError, RecursionError, MemoryError) as error:
            raise TemplateSyntaxError("it is nested too deeply", lineno=1) from error
        except (ValueError, TypeError) as error:
            raise TemplateSyntaxError(f"it has a constant of no use: {error}", lineno=1) from error

    @staticmethod
    def concat(pieces: Iterable[str]) -> str:
        """Puts together what a template, a block or a macro writes.

        Raises:
            TemplateTooCostlyError: It is too long.
        """
        texts = list(pieces)
        require_size(sum(map(len, texts)))
        return "".join(texts)

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        """Calculates; what would be too large is refused before."""
        if operator == "+" and type(left) is str and type(right) is str:
            size = len(left) + len(right)
            if size > _SMALL:  # of small ones, no template makes enough to matter
                _work(context).make(size)
            return left + right
        _work(context).make(size_of_result(operator, left, right))
        return super().call_binop(context, operator, left, right)

    def call(__self, __context: Context, __obj: Any, *args: Any, **kwargs: Any) -> Any:  # noqa: N805
        """Calls a function or a method; a text that would be too long is refused before."""
        work = _work(__context)
        if not isinstance(__obj, Macro):
            args = tuple(work.gather(arg) if _is_stream(arg) else arg for arg in args)
            work.make(size_of_call(__obj, args, _given(kwargs)))
        elif __obj.catch_varargs or __obj.catch_kwargs:  # they become a tuple and a dict
            work.make(size_of(args) + size_of(_given(kwargs)))
        return super().call(__context, __obj, *args, **kwargs)

    def getitem(self, obj: Any, argument: Any) -> Any:
        """Takes a part of a value, by a name or a number."""
        if isinstance(argument, list | tuple | dict):  # its text would stand in a message
            raise TypeError(f"a {type(argument).__name__} names no part of a value")
        return super().getitem(obj, argument)

    def _filter_test_common(
        self, name: Any, value: Any, args: Any, kwargs: Any, context: Any, *others: Any
    ) -> Any:
        if context is not None:  # a round of map, select or their like
            _work(context).count()
            if name in COMPARISONS:
                _work(context).make(size_of((value, *(args or ()))))
        return super()._filter_test_common(name, value, args, kwargs, context, *others)

    def _parse(self, source: str, name: str | None, filename: str | None) -> nodes.Template:
        return bounded(super()._parse(source, name, filename))


class _CheckedFilters(dict[str, Any]):
    """Filters by name; each is wrapped when it is put in."""

    def __setitem__(self, name: str, apply: Callable[..., object]) -> None:
        super().__setitem__(name, _checked(name, apply))


def _checked(name: str, apply: Callable[..., object]) -> Callable[..., object]:
    """Wraps a filter, which may want to know of its surroundings, too."""
    wanted = getattr(apply, "jinja_pass_arg", None)
    estimate = FILTERS.get(name)

    @pass_context
    def apply_checked(context: Context, value: Any, *args: Any, **kwargs: Any) -> object:
        if estimate is None:
            raise SecurityError(f"it uses the filter {name!r}, which no template may")
        work = _work(context)
        if name in GATHERING and _is_stream(value):
            value = work.gather(value)
        work.make(estimate(value, *args, **kwargs))
        if wanted is None:
            return apply(value, *args, **kwargs)
        surroundings = {
            "context": context,
            "eval_context": context.eval_ctx,
            "environment": context.environment,
        }
        return apply(surroundings[wanted.name], value, *args, **kwargs)

    return apply_checked


@pass_context
def _written(context: Context, value: Any) -> object:
    """Counts what a template writes."""
    if not isinstance(value, str):
        _work(context).make(size_of(value))
    elif len(value) > _SMALL:
        _work(context).make(len(value))
    return value


@pass_context
def _counted(context: Context, _value: None) -> None:
    _work(context).count()


@pass_context
def _joined(context: Context, pieces: Sequence[object]) -> str:
    _work(context).make(sum(map(size_of, pieces)))
    return "".join(map(str, pieces))


@pass_context
def _cut(context: Context, value: object) -> object:
    _work(context).make(size_of_copy(value))
    return value


@pass_context
def _compared(context: Context, value: object) -> object:
    if not isinstance(value, str | int):
        _work(context).make(size_of(value))
    return value


def _work(context: Context) -> Work:
    assert isinstance(context, BoundedContext), "the environment makes no other"
    return context.work


def _given(kwargs: dict[str, Any]) -> dict[str, Any]:
    """Returns what the template itself gives to a call by name."""
    if not kwargs:
        return kwargs
    return {name: value for name, value in kwargs.items() if name not in _SCOPES}


def _is_stream(value: object) -> bool:
    """Tells whether a value gives its items one by one, and is no loop that goes on with them."""
    return isinstance(value, Iterator) and not hasattr(value, "index0")
