"""Makes torch load in two thirds of the time, in processes that are all this program's."""

from __future__ import annotations

import inspect
from importlib.util import find_spec
from pathlib import Path

from furiosa_llm.library_imports.dynamo import delay_dynamo
from furiosa_llm.library_imports.meta_kernels import delay_meta_kernels

# They define operators when they are loaded, and torch asks in which file that is.
_MODULES_WITH_OPERATORS = (
    "torch._dynamo._trace_wrapped_higher_order_op",
    "torch._library.custom_ops",
    "torch._native.registry",
    "torch.utils._debug_mode._mode",
)


def hasten_torch() -> None:
    """Arranges for the import that comes: what is not wanted at once is loaded later.

    It changes torch for the whole process: not for one that belongs to someone else.
    """
    delay_dynamo()
    delay_meta_kernels()
    _tell_inspect()


def _tell_inspect() -> None:
    """Tells `inspect` in which files some modules are.

    Else it resolves the paths of all modules that are loaded to find one: 0.2 s of 2,000.
    """
    spec = find_spec("torch")
    for folder in (spec and spec.submodule_search_locations) or ():
        for name in _MODULES_WITH_OPERATORS:
            file = Path(folder).joinpath(*name.split(".")[1:]).with_suffix(".py")
            inspect.modulesbyfile.setdefault(str(file), name)
