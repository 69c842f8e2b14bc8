"""Lets torch load its compiler, `torch._dynamo`, when it is wanted and not before.

transformers imports it for three decorators, which only say how functions are to be compiled. It
compiles nothing here, and loading the compiler takes a third of the time of all imports. So the
package is there with these decorators alone. Whoever asks for anything else of it, or for one of
its modules, gets the whole, and what was decorated until then is made known to it.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from types import FunctionType, ModuleType
from typing import Any

from furiosa_llm.library_imports.delayed import DelayedModule, delay, load_whole

_PACKAGE = "torch._dynamo"
_STANDS_ALONE = "torch._dynamo._trace_wrapped_higher_order_op"  # asks nothing of the package

Function = Callable[..., Any]


def delay_dynamo() -> None:
    """See `delay`."""
    delay(
        _PACKAGE,
        _Dynamo,
        lambda name: name.startswith(f"{_PACKAGE}.") and name != _STANDS_ALONE,
    )


class _Dynamo(DelayedModule):
    """The package while it is not loaded. The methods are its functions of the same names."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self._furiosa_marks: list[Any] = []

    def allow_in_graph(self, fn: Any) -> Any:
        """Notes that a function is to stand in a compiled graph as it is."""
        self._furiosa_marks.append(("allow_in_graph", fn))
        return fn

    def assume_constant_result(self, fn: Function) -> Function:
        """Notes that a function always returns the same."""
        self._furiosa_marks.append(("assume_constant_result", fn))
        return fn

    def disable(self, fn: Any = None, recursive: bool = True, **options: Any) -> Any:
        """Returns a function that is not compiled, also if the package is loaded later."""
        if fn is None and not recursive:
            return functools.partial(self.disable, recursive=False, **options)
        if not isinstance(fn, FunctionType):  # a class, or a context
            load_whole(self)
            return self.disable(fn, recursive, **options)
        return _Disabled(self, fn, recursive=recursive, options=options).as_function()

    def note_loaded(self) -> None:
        """Makes known what was decorated."""
        for name, function in vars(self).pop("_furiosa_marks"):
            getattr(self, name)(function)


class _Disabled:
    """A function that the package disables as soon as it is loaded."""

    def __init__(
        self, package: _Dynamo, function: Function, *, recursive: bool, options: dict[str, Any]
    ) -> None:
        self._package = package
        self._function = function
        self._recursive = recursive
        self._options = options
        self._disabled: Function | None = None

    def as_function(self) -> Function:
        @functools.wraps(self._function)
        def call(*args: Any, **kwargs: Any) -> Any:
            if self._disabled is None and type(self._package) is ModuleType:
                self._disabled = self._package.disable(
                    self._function, self._recursive, **self._options
                )
            return (self._disabled or self._function)(*args, **kwargs)

        return call
