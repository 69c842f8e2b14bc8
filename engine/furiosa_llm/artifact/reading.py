"""Reads an artifact and checks that it is whole. What is wrong with it is one line."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from pathlib import Path, PurePosixPath
from typing import Any, TypeVar

from furiosa_llm.artifact.contents import (
    ARTIFACT_FILE,
    FORMAT,
    RUNTIME_FILE,
    VERSION,
    Artifact,
    ArtifactFile,
    Bucket,
    RuntimeConfig,
)
from furiosa_llm.errors import ConfigError, ModelLoadError

SMALL_FILE_BYTES = 16 * 2**20

_Built = TypeVar("_Built", Artifact, RuntimeConfig, Bucket)

_AGAIN = "copy the folder again, or build it again"
_JSON_TYPES: dict[str, tuple[type, ...]] = {
    "str": (str,),
    "str | None": (str, type(None)),
    "int": (int,),
    "int | None": (int, type(None)),
    "float | None": (int, float, type(None)),
    "bool | None": (bool, type(None)),
}


def is_artifact(folder: Path) -> bool:
    """Tells whether a folder is meant as an artifact, a damaged one too."""
    return (folder / ARTIFACT_FILE).is_file() or (folder / RUNTIME_FILE).is_file()


def read_artifact(folder: Path, *, verify: bool = False) -> Artifact:
    """Reads an artifact and checks its files.

    Every file must be there in its full size. The content is compared with its hash for files
    below 16 MiB, which takes no time; for larger ones only if `verify` is set, since reading all
    weights twice would double the time to load them.

    Raises:
        ModelLoadError: It is no artifact, of a newer program, incomplete or changed.
    """
    artifact = read_description(folder)
    for file in artifact.files:
        _check_file(folder / file.name, file, verify=verify)
    path = folder / RUNTIME_FILE
    values = _take_fields(RuntimeConfig, _read_json(path), path)
    for name in ("prefill_buckets", "decode_buckets"):
        values[name] = _buckets(values[name], name, path)
    return dataclasses.replace(artifact, runtime=_built(RuntimeConfig, values, path))


def read_description(folder: Path) -> Artifact:
    """Reads `artifact.json` alone: no other file is looked at.

    Raises:
        ModelLoadError: It is missing, damaged, or of another program or a newer version.
    """
    path = folder / ARTIFACT_FILE
    content = _read_json(path)
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise ModelLoadError(
            f'{path}: is not of the format "{FORMAT}"; give a folder that furiosa-llm build '
            "wrote, or the checkpoint that this one was made from"
        )
    version = content.get("version")
    if isinstance(version, int) and version > VERSION:
        raise ModelLoadError(
            f"{path}: is of version {version}, but this program reads versions up to {VERSION}; "
            "update the program, or build the artifact again with this one"
        )
    if version is True or version != VERSION:
        raise _damaged(path, f"version must be a whole number from 1, got {version!r}")
    own = {name: value for name, value in content.items() if name not in ("format", "version")}
    values = _take_fields(Artifact, own, path, without="runtime")
    values["files"] = _files(values["files"], path)
    return _built(Artifact, values, path)


def new_digest() -> hashlib.blake2b:
    """Returns an empty digest of the kind that artifacts use."""
    return hashlib.blake2b(digest_size=20)


def digest_text(digest: hashlib.blake2b) -> str:
    """Returns a digest as `artifact.json` has it."""
    return f"blake2b:{digest.hexdigest()}"


def _check_file(path: Path, file: ArtifactFile, *, verify: bool) -> None:
    if not path.is_file():
        raise _damaged(path, "is missing")
    try:
        num_bytes = path.stat().st_size
        if num_bytes != file.num_bytes:
            raise _damaged(path, f"has {num_bytes:,} bytes where {file.num_bytes:,} were written")
        if not verify and num_bytes >= SMALL_FILE_BYTES:
            return
        with path.open("rb") as opened:
            found = digest_text(hashlib.file_digest(opened, new_digest))  # type: ignore[arg-type]
    except OSError as error:
        raise ModelLoadError(f"{path}: cannot be read: {error.strerror or error}") from error
    if found != file.hash:
        raise _damaged(path, "was changed since the artifact was built")


def _read_json(path: Path) -> object:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise _damaged(path, "is missing") from error
    except OSError as error:
        raise ModelLoadError(f"{path}: cannot be read: {error.strerror or error}") from error
    except ValueError as error:
        raise _damaged(path, f"is not JSON ({error})") from error


def _take_fields(
    owner: type, content: object, path: Path, *, without: str | None = None
) -> dict[str, Any]:
    """Returns the values of a dataclass, all of them there and each of its type."""
    if not isinstance(content, dict):
        raise _damaged(path, f"must hold names and values, got {_shown(content)}")
    fields = {field.name: field for field in dataclasses.fields(owner) if field.name != without}
    for name in fields:
        if name not in content:
            raise _damaged(path, f"{name} is missing")
    for name, value in content.items():
        if name not in fields:
            raise _damaged(path, f"{_shown(name)} is unknown")
        wanted = _JSON_TYPES.get(str(fields[name].type))
        if wanted is not None and not _is_of(value, wanted):
            raise _damaged(path, f"{name} must be {fields[name].type}, got {_shown(value)}")
    return dict(content)


def _is_of(value: object, wanted: tuple[type, ...]) -> bool:
    return isinstance(value, wanted) and (bool in wanted or not isinstance(value, bool))


def _files(content: object, path: Path) -> tuple[ArtifactFile, ...]:
    if not isinstance(content, list):
        raise _damaged(path, f"files must be a list, got {_shown(content)}")
    files = tuple(ArtifactFile(**_take_fields(ArtifactFile, entry, path)) for entry in content)
    for file in files:
        name = PurePosixPath(file.name)
        if not name.parts or name.is_absolute() or ".." in name.parts:
            raise _damaged(path, f"files names {_shown(file.name)}, which is not in the folder")
    if RUNTIME_FILE not in {file.name for file in files}:
        raise _damaged(path, f"files does not name {RUNTIME_FILE}")
    return files


def _buckets(content: object, name: str, path: Path) -> tuple[Bucket, ...]:
    if not isinstance(content, list):
        raise _damaged(path, f"{name} must be a list, got {_shown(content)}")
    buckets = []
    for entry in content:
        is_pair = isinstance(entry, list) and len(entry) == 2
        if not is_pair or not all(_is_of(number, (int,)) for number in entry):
            raise _damaged(path, f"{name} must hold [batch, length], got {_shown(entry)}")
        batch_size, length = entry
        buckets.append(_built(Bucket, {"batch_size": batch_size, "length": length}, path))
    return tuple(buckets)


def _built(owner: type[_Built], values: dict[str, Any], path: Path) -> _Built:
    try:
        return owner(**values)
    except ConfigError as error:
        raise _damaged(path, str(error)) from error


def _damaged(path: Path, what: str) -> ModelLoadError:
    return ModelLoadError(f"{path}: {what}; {_AGAIN}")


def _shown(value: object) -> str:
    return repr(value)[:80]
