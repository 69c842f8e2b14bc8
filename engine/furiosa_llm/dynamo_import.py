"""Lets torch load its compiler, `torch._dynamo`, when it is wanted and not before.

transformers imports it for three decorators, which only say how functions are to be compiled. It
compiles nothing here, and loading the compiler takes a third of the time of all imports. So the
package is there with these decorators alone. Whoever asks for anything else of it, or for one of
its modules, gets the whole, and what was decorated until then is made known to it.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from types import FunctionType, ModuleType
from typing import Any

_PACKAGE = "torch._dynamo"
_STANDS_ALONE = "torch._dynamo._trace_wrapped_higher_order_op"  # asks nothing of the package
_MARKS = "_furiosa_marks"

Function = Callable[..., Any]


def delay_dynamo() -> None:
    """Arranges for the import that comes; where the package is loaded already, does nothing.

    It changes torch for the whole process: not for one that belongs to someone else.
    """
    if _PACKAGE not in sys.modules:
        sys.meta_path.insert(0, _Finder())


class _Dynamo(ModuleType):
    """The package while it is not loaded. The methods are its functions of the same names."""

    def allow_in_graph(self, fn: Any) -> Any:
        """Notes that a function is to stand in a compiled graph as it is."""
        vars(self)[_MARKS].append(("allow_in_graph", fn))
        return fn

    def assume_constant_result(self, fn: Function) -> Function:
        """Notes that a function always returns the same."""
        vars(self)[_MARKS].append(("assume_constant_result", fn))
        return fn

    def disable(self, fn: Any = None, recursive: bool = True, **options: Any) -> Any:
        """Returns a function that is not compiled, also if the package is loaded later."""
        if fn is None and not recursive:
            return functools.partial(self.disable, recursive=False, **options)
        if not isinstance(fn, FunctionType):  # a class, or a context
            _load_whole(self)
            return self.disable(fn, recursive, **options)
        return _Disabled(self, fn, recursive=recursive, options=options).as_function()

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(f"module {_PACKAGE!r} has no attribute {name!r}")
        _load_whole(self)
        return getattr(self, name)


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


def _load_whole(package: ModuleType) -> None:
    """Runs the package's own code in the module that stood for it."""
    marks = vars(package).pop(_MARKS, None)
    if marks is None:
        return  # someone is about it
    package.__class__ = ModuleType
    assert package.__loader__ is not None, "it was found by its own loader"
    package.__loader__.exec_module(package)  # type: ignore[attr-defined]
    for name, function in marks:
        getattr(package, name)(function)


class _Finder(MetaPathFinder):
    """Finds the package without loading it, and loads it when one of its modules is wanted."""

    def find_spec(
        self, fullname: str, path: object = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname == _PACKAGE:
            spec = PathFinder.find_spec(fullname, path, target)  # type: ignore[arg-type]
            if spec is not None and spec.loader is not None:
                spec.loader = _LaterLoader(spec.loader)
            return spec
        if fullname.startswith(f"{_PACKAGE}.") and fullname != _STANDS_ALONE:
            sys.meta_path.remove(self)
            _load_whole(sys.modules[_PACKAGE])
        return None


class _LaterLoader(Loader):
    """Makes the module that stands for the package."""

    def __init__(self, own: Loader) -> None:
        self._own = own

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        return _Dynamo(spec.name)

    def exec_module(self, module: ModuleType) -> None:
        vars(module)[_MARKS] = []
        module.__loader__ = self._own
        if module.__spec__ is not None:
            module.__spec__.loader = self._own
