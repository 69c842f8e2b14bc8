"""Modules of large libraries that are loaded when they are wanted, and not before.

In the place of one stands a module that loads the whole as soon as it is asked for anything.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType

_WAITS = "_furiosa_waits"


class DelayedModule(ModuleType):
    """What stands for a module until it is wanted. Subclasses answer some things themselves."""

    def __getattr__(self, name: str) -> object:
        if name.startswith("__"):
            raise AttributeError(f"module {self.__name__!r} has no attribute {name!r}")
        load_whole(self)
        return getattr(self, name)

    def note_loaded(self) -> None:
        """Called once the whole is loaded."""


def delay(name: str, stand_in: type[DelayedModule], needed_by: Callable[[str], bool]) -> None:
    """Arranges for the import that comes; where the module is loaded already, does nothing.

    It changes a library for the whole process: not for one that belongs to someone else.

    Args:
        name: Of the module, as `torch._dynamo`.
        stand_in: What stands for it.
        needed_by: Tells of a module's name whether the whole has to be loaded before it.
    """
    if name not in sys.modules:
        sys.meta_path.insert(0, _Finder(name, stand_in, needed_by))


def load_whole(module: ModuleType | None) -> bool:
    """Runs a module's own code where a stand-in waits for that, and tells whether one did."""
    if not isinstance(module, DelayedModule) or not vars(module).pop(_WAITS, False):
        return False  # it is loaded, or someone is about it
    note_loaded = module.note_loaded
    module.__class__ = ModuleType  # type: ignore[assignment]
    assert module.__loader__ is not None, "it was found by its own loader"
    module.__loader__.exec_module(module)  # type: ignore[attr-defined]
    note_loaded()
    return True


class _Finder(MetaPathFinder):
    """Finds the module without loading it, and loads it when something wanted needs it."""

    def __init__(
        self, name: str, stand_in: type[DelayedModule], needed_by: Callable[[str], bool]
    ) -> None:
        self._name = name
        self._stand_in = stand_in
        self._needed_by = needed_by

    def find_spec(
        self, fullname: str, path: object = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname == self._name:
            spec = PathFinder.find_spec(fullname, path, target)  # type: ignore[arg-type]
            if spec is not None and spec.loader is not None:
                spec.loader = _LaterLoader(spec.loader, self._stand_in)
            return spec
        module = sys.modules.get(self._name)
        if module is None or not self._needed_by(fullname):
            return None
        sys.meta_path.remove(self)
        load_whole(module)
        loaded = sys.modules.get(fullname)
        if loaded is not None and loaded.__spec__ is not None:  # the whole has brought it along
            spec = ModuleSpec(fullname, _NoLoader(loaded.__spec__))
            vars(loaded)["__spec__"] = spec  # a module may have ideas of its own about attributes
            return spec
        return None


class _LaterLoader(Loader):
    """Makes what stands for the module."""

    def __init__(self, own: Loader, stand_in: type[DelayedModule]) -> None:
        self._own = own
        self._stand_in = stand_in

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        return self._stand_in(spec.name)

    def exec_module(self, module: ModuleType) -> None:
        vars(module)[_WAITS] = True
        module.__loader__ = self._own
        if module.__spec__ is not None:
            module.__spec__.loader = self._own


class _NoLoader(Loader):
    """Gives a module that was loaded while it was looked for, lest it be loaded twice."""

    def __init__(self, own: ModuleSpec) -> None:
        self._own = own

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return sys.modules.get(spec.name)

    def exec_module(self, module: ModuleType) -> None:
        vars(module)["__spec__"] = self._own
