"""Which files a checkpoint's weights are read from: safetensors, which hold numbers and no code."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from transformers.utils import cached_file

from furiosa_llm.errors import ModelLoadError

SINGLE_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"

_SUFFIX = ".safetensors"
_PICKLE_SUFFIXES = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle")
_MAX_SHOWN = 3


def refuse_pickle(path: str, config: Any) -> None:
    """Refuses a checkpoint whose weights would be unpickled: a pickle can hold code.

    Raises:
        ModelLoadError: They are, as far as it shows before a download, or its index is damaged.
    """
    named = getattr(config, "transformers_weights", None)
    if isinstance(named, str) and named.endswith(_PICKLE_SUFFIXES):
        raise _pickled(path, [named])
    folder = Path(path)
    if folder.is_dir() and (folder / SINGLE_FILE).is_file():
        return
    index = _find_index(path)
    if index is not None:
        read_index(index)
    elif folder.is_dir():
        pickles = sorted(one.name for one in folder.iterdir() if one.suffix in _PICKLE_SUFFIXES)
        if pickles:
            raise _pickled(path, pickles)


def read_index(index: Path) -> list[str]:
    """Returns the files of weights that an index names, in order of name.

    Raises:
        ModelLoadError: It is damaged, or names something else than safetensors beside it.
    """
    try:
        names = {str(name) for name in _weight_map(index).values()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ModelLoadError(f"{index}: cannot be read as an index of weights") from error
    for name in sorted(names):
        if not name.endswith(_SUFFIX) or name != Path(name).name:
            raise ModelLoadError(
                f"{index}: names {name[:80]!r}, which is no {_SUFFIX} file beside it; nothing else "
                "is loaded"
            )
    return sorted(names)


def _weight_map(index: Path) -> Mapping[str, str]:
    weight_map: Mapping[str, str] = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
    return weight_map


def _find_index(path: str) -> Path | None:
    if Path(path).is_dir():
        index = Path(path) / INDEX_FILE
        return index if index.is_file() else None
    found = cached_file(
        path,
        INDEX_FILE,
        _raise_exceptions_for_gated_repo=False,
        _raise_exceptions_for_missing_entries=False,
        _raise_exceptions_for_connection_errors=False,
    )
    return None if found is None else Path(found)


def _pickled(path: str, names: list[str]) -> ModelLoadError:
    more = len(names) - _MAX_SHOWN
    shown = ", ".join(names[:_MAX_SHOWN]) + (f" and {more} more" if more > 0 else "")
    return ModelLoadError(
        f"{path}: has only pickled weights ({shown}), and a pickle can run code; convert them to "
        "safetensors with transformers' save_pretrained, or trust them with --allow-pickle"
    )
