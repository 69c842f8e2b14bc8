"""Makes transformers load in half the time, in processes that are all this program's.

Some functions of `transformers.utils.import_utils` are replaced, as soon as that module is loaded
and before any other uses them. Where transformers has no function of the name, nothing is changed.

- What each of its 2,500 files offers, transformers finds out by reading all of them, twice: 0.6 s.
  Here they are read once, and what was found is kept on disk as long as no file changes.
- It loads all of torch's distributed tensors wherever torch has them: 0.4 s. A process that runs
  no ranks is told that torch has none, as it would be by a torch that was built without.
- It loads torch itself for a tokenizer, which does not need it: a second, and 167 MiB. A process
  whose models run in others is told that there is no torch.
"""

from __future__ import annotations

import contextlib
import hashlib
import marshal
import os
import sys
from collections.abc import Callable, Iterator
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from types import ModuleType
from typing import TypeAlias

_MODULE = "transformers.utils.import_utils"
_READ_OFFERS = "create_import_structure_from_path"
_HAS_TORCH = "is_torch_available"
_HAS_DISTRIBUTED = "is_torch_distributed_available"
_NO_ADVICE = "TRANSFORMERS_NO_ADVISORY_WARNINGS"  # that one should install torch

Offers: TypeAlias = dict[object, object]  # transformers' own; only handed on here


def hasten_transformers(cache_dir: str | None, *, runs_ranks: bool = False) -> None:
    """Arranges for the import that comes; where transformers is loaded already, does nothing.

    It changes transformers for the whole process: not for one that belongs to someone else.

    Args:
        cache_dir: Folder to keep in what takes long to find out; None keeps nothing on disk.
        runs_ranks: Whether the process is to join others by `torch.distributed`.
    """
    if _MODULE not in sys.modules:
        sys.meta_path.insert(0, _Finder(cache_dir, runs_ranks=runs_ranks))


def leave_torch_out() -> None:
    """Lets transformers do without torch, in a process that has hastened it and needs no model.

    Where nobody has, or transformers is loaded already, does nothing.
    """
    for finder in sys.meta_path:
        if isinstance(finder, _Finder):
            finder.has_torch = False


class KeptOffers:
    """Answers `create_import_structure_from_path`; for the folder of all models, from disk."""

    def __init__(self, read: Callable[[str], Offers], folder: Path, file: Path | None) -> None:
        """Takes transformers' own function, the folder of its models, and where to keep them."""
        self._read = read
        self._folder = folder
        self._file = file
        self._offers: Offers | None = None

    def __call__(self, module_path: str | Path) -> Offers:
        """Returns what the files of a folder offer; that of a file is the one it lies in."""
        path = Path(module_path)
        if path not in (self._folder, self._folder / "__init__.py"):
            return self._read(str(module_path))
        if self._offers is None:
            self._offers = self._find()
        return self._offers

    def _find(self) -> Offers:
        if self._file is None:
            return self._read(str(self._folder))
        fingerprint = _fingerprint(self._folder)
        with contextlib.suppress(OSError, ValueError, EOFError, TypeError):  # none yet, or damaged
            known, offers = marshal.loads(self._file.read_bytes())
            if known == fingerprint:
                return offers  # type: ignore[no-any-return]
        offers = self._read(str(self._folder))
        with contextlib.suppress(OSError):  # it only costs time
            _write(self._file, marshal.dumps((fingerprint, offers)))
        return offers


class _Finder(MetaPathFinder):
    """Finds one module as usual, has it changed once it is loaded, and is gone."""

    def __init__(self, cache_dir: str | None, *, runs_ranks: bool) -> None:
        self.has_torch = True
        self._cache_dir = cache_dir
        self._runs_ranks = runs_ranks

    def find_spec(
        self, fullname: str, path: object = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname != _MODULE:
            return None
        sys.meta_path.remove(self)
        spec = PathFinder.find_spec(fullname, path, target)  # type: ignore[arg-type]
        if spec is not None and spec.loader is not None:
            spec.loader = _ChangingLoader(spec.loader, self._change)
        return spec

    def _change(self, module: ModuleType) -> None:
        if hasattr(module, _READ_OFFERS) and module.__file__ is not None:
            folder = Path(module.__file__).parents[1] / "models"
            offers = KeptOffers(getattr(module, _READ_OFFERS), folder, self._file_for(folder))
            setattr(module, _READ_OFFERS, offers)
        if hasattr(module, _HAS_DISTRIBUTED) and not self._runs_ranks:
            setattr(module, _HAS_DISTRIBUTED, _no)
        if hasattr(module, _HAS_TORCH) and not self.has_torch:
            os.environ.setdefault(_NO_ADVICE, "1")
            setattr(module, _HAS_TORCH, _no)

    def _file_for(self, folder: Path) -> Path | None:
        if self._cache_dir is None:
            return None
        place = hashlib.blake2b(str(folder).encode(), digest_size=8).hexdigest()
        name = f"transformers-{place}.{sys.implementation.cache_tag}"
        return Path(self._cache_dir).expanduser() / "imports" / name


class _ChangingLoader(Loader):
    """Loads a module as its own loader does, and has it changed."""

    def __init__(self, own: Loader, change: Callable[[ModuleType], None]) -> None:
        self._own = own
        self._change = change

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return self._own.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        module.__loader__ = self._own
        if module.__spec__ is not None:
            module.__spec__.loader = self._own
        self._own.exec_module(module)
        self._change(module)


def _no() -> bool:
    """Whether torch can do something that it is not to be asked for."""
    return False


def _fingerprint(folder: Path) -> str:
    """Returns what changes when any file of transformers' models, or transformers itself, does."""
    version = getattr(sys.modules.get("transformers"), "__version__", None)
    digest = hashlib.blake2b(repr(version).encode(), digest_size=20)
    for entry in sorted(_python_files(str(folder))):
        digest.update(repr(entry).encode())
    return digest.hexdigest()


def _python_files(folder: str) -> Iterator[tuple[str, int, int]]:
    """Yields path, size and time of change of every Python file below a folder."""
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.name.endswith(".py"):
                about = entry.stat()
                yield entry.path, about.st_size, about.st_mtime_ns
            elif entry.name != "__pycache__" and entry.is_dir():
                yield from _python_files(entry.path)


def _write(file: Path, content: bytes) -> None:
    """Puts a file in its place as a whole: another process may read it, or write it too."""
    file.parent.mkdir(parents=True, exist_ok=True)
    unfinished = file.with_name(f"{file.name}.{os.getpid()}")
    unfinished.write_bytes(content)
    unfinished.replace(file)
