"""Fingerprints of models, tokenizers and inputs, which tell whether they are the same."""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import BinaryIO

from furiosa_llm.errors import DatasetError

FULL_HASH_BYTES = 1 << 30

_CHUNK_BYTES = 1 << 20
_SAMPLE_BYTES = 1 << 16
_NUM_SAMPLES = 64
_MAX_HEADER_BYTES = 100_000_000
_CONFIG_FILES = ("config.json", "generation_config.json", "model.safetensors.index.json")
_WEIGHT_SUFFIXES = (".safetensors", ".bin", ".pt")
_CODE_SUFFIX = ".py"  # of a model that comes with its own
_TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
    "tokenizer.model",
    "spiece.model",
    "sentencepiece.bpe.model",
    "tekken.json",
    "chat_template.jinja",
    "chat_template.json",
)


def hash_text(text: str) -> str:
    """Hashes a text, such as a chat template."""
    digest = _new_digest()
    digest.update(text.encode())
    return f"blake2b:{digest.hexdigest()}"


def hash_file(path: Path) -> str:
    """Hashes a file: all of it up to 1 GiB, else its size and samples of it.

    The samples are 64 blocks of 64 KiB at even distances, the first and the last block among them.

    Raises:
        DatasetError: It cannot be read.
    """
    digest = _new_digest()
    with _opened(path) as file:
        if _size_of(file) > FULL_HASH_BYTES:
            _update_with_samples(digest, file)
            return f"blake2b-sampled:{digest.hexdigest()}"
        while chunk := file.read(_CHUNK_BYTES):
            digest.update(chunk)
    return f"blake2b:{digest.hexdigest()}"


def hash_model(path: Path) -> str | None:
    """Hashes a checkpoint folder in well under a second, however big it is.

    It covers, in order of name: `config.json`, `generation_config.json` and
    `model.safetensors.index.json` whole, and so Python code; of every `.safetensors`, `.bin` and
    `.pt` file the name, the size and 64 blocks of 64 KiB at even distances; of a `.safetensors`
    file also the header, which has the names, types, shapes and places of all tensors. Weights
    changed only between the samples are not noticed.

    Returns:
        The hash; None if the path is no folder.

    Raises:
        DatasetError: A file cannot be read.
    """
    if not path.is_dir():
        return None
    digest = _new_digest()
    files = sorted(path.iterdir())
    weights = [file for file in files if file.suffix in _WEIGHT_SUFFIXES]
    _update_with_files(digest, (path / name for name in _CONFIG_FILES))
    _update_with_files(digest, (file for file in files if file.suffix == _CODE_SUFFIX))
    for weight in weights:
        with _opened(weight) as file:
            _update_with_field(digest, weight.name.encode())
            if weight.suffix == ".safetensors":
                _update_with_header(digest, file)
            _update_with_samples(digest, file)
    return f"blake2b-sampled:{digest.hexdigest()}"


def hash_tokenizer(path: Path) -> str | None:
    """Hashes the files of a tokenizer's folder whole; None if the path is no folder.

    Raises:
        DatasetError: A file cannot be read.
    """
    if not path.is_dir():
        return None
    digest = _new_digest()
    _update_with_files(digest, (path / name for name in _TOKENIZER_FILES))
    return f"blake2b:{digest.hexdigest()}"


def _new_digest() -> hashlib.blake2b:
    return hashlib.blake2b(digest_size=20)


def _update_with_files(digest: hashlib.blake2b, paths: Iterable[Path]) -> None:
    for path in paths:
        if path.is_file():
            with _opened(path) as file:
                _update_with_field(digest, path.name.encode())
                _update_with_field(digest, file.read())


def _update_with_field(digest: hashlib.blake2b, field: bytes) -> None:
    # With its length first, no field can pass for a part of its neighbour.
    digest.update(len(field).to_bytes(8, "little"))
    digest.update(field)


def _update_with_header(digest: hashlib.blake2b, file: BinaryIO) -> None:
    length = int.from_bytes(file.read(8), "little")
    _update_with_field(digest, file.read(min(length, _MAX_HEADER_BYTES)))


def _update_with_samples(digest: hashlib.blake2b, file: BinaryIO) -> None:
    size = _size_of(file)
    digest.update(size.to_bytes(8, "little"))
    last = max(size - _SAMPLE_BYTES, 0)
    for offset in sorted({last * step // (_NUM_SAMPLES - 1) for step in range(_NUM_SAMPLES)}):
        file.seek(offset)
        digest.update(file.read(_SAMPLE_BYTES))


def _size_of(file: BinaryIO) -> int:
    return os.fstat(file.fileno()).st_size


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[BinaryIO]:
    try:
        with path.open("rb") as file:
            yield file
    except OSError as error:
        raise DatasetError(f"{path}: cannot be read: {error.strerror or error}") from error
