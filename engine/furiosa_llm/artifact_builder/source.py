"""The checkpoint that an artifact is made from: where it lies, and what is taken from it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

from furiosa_llm.artifact.contents import ARTIFACT_FILE, RUNTIME_FILE
from furiosa_llm.errors import ModelLoadError
from furiosa_llm.modeling.weight_files import INDEX_FILE

CONFIG_FILE = "config.json"

_SUFFIXES = (".json", ".jinja", ".model", ".tiktoken", ".txt")
_CODE_SUFFIX = ".py"
_LEGAL = ("LICENSE", "LICENCE", "NOTICE", "USE_POLICY")  # they ask to be passed on
_TEMPLATES_FOLDER = "additional_chat_templates"
_LEFT_OUT = (ARTIFACT_FILE, RUNTIME_FILE, INDEX_FILE)
_CHUNK_BYTES = 2**20


def companion_files(folder: Path, *, with_code: bool) -> list[str]:
    """Returns what belongs to a checkpoint beside weights and `config.json`.

    These are the files of the tokenizer, of generation, of the licence, and the code that comes
    with it if `with_code` is set.
    """
    suffixes = (*_SUFFIXES, _CODE_SUFFIX) if with_code else _SUFFIXES
    names = [
        path.name
        for path in folder.iterdir()
        if path.is_file()
        and (path.suffix in suffixes or path.name.upper().startswith(_LEGAL))
        and path.name not in (*_LEFT_OUT, CONFIG_FILE)
    ]
    templates = (folder / _TEMPLATES_FOLDER).glob("*.jinja")
    return sorted([*names, *(f"{_TEMPLATES_FOLDER}/{path.name}" for path in templates)])


def file_chunks(path: Path) -> Iterator[bytes]:
    """Yields the content of a file.

    Raises:
        ModelLoadError: It cannot be read.
    """
    try:
        with path.open("rb") as file:
            while chunk := file.read(_CHUNK_BYTES):
                yield chunk
    except OSError as error:
        raise ModelLoadError(f"{path}: cannot be read: {error.strerror or error}") from error


def config_with_dtype(folder: Path, dtype: str) -> bytes:
    """Returns the content of `config.json` for weights of another type.

    Raises:
        ModelLoadError: It cannot be read.
    """
    content = json.loads(b"".join(file_chunks(folder / CONFIG_FILE)))
    _set_dtype(content, dtype)
    content["dtype"] = dtype
    return (json.dumps(content, indent=2, ensure_ascii=False) + "\n").encode()


def _set_dtype(content: dict[str, object], dtype: str) -> None:
    """Replaces the type wherever it is named, under its old name and in parts of the model too."""
    if content.pop("torch_dtype", None) is not None or "dtype" in content:
        content["dtype"] = dtype
    for value in content.values():
        if isinstance(value, dict):
            _set_dtype(value, dtype)
