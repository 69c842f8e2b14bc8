"""What a run was: enough to tell whether another one would give the same answers."""

from __future__ import annotations

import datetime
import importlib.metadata
import json
import platform
import socket
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from furiosa_llm.dataset.hashing import hash_file
from furiosa_llm.dataset.reader import RowSource
from furiosa_llm.dataset.redaction import redacted
from furiosa_llm.dataset.shard import WHOLE, Shard
from furiosa_llm.sampling_params import SamplingParams

MANIFEST_KEY = "furiosa_llm.manifest"

_PROGRAM = "furiosa-llm-cli"
_LIBRARIES = ("torch", "transformers", "pyarrow")


@dataclass(frozen=True, slots=True, kw_only=True)
class InputFile:
    """A file of the input. What is no regular file has neither size nor hash."""

    path: str
    num_bytes: int | None = None
    hash: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """What a run was.

    Attributes:
        model: Path; of a model of the hub that of its snapshot, which names its commit.
        model_hash: See `hash_model`.
        tokenizer_hash: Hash of the tokenizer's files.
        chat_template_hash: Hash of the template's text.
        options: Every option, as the run resolved it.
        sampling_params: What rows that say nothing else are answered with.
        seed: Of every random draw.
        inputs: What was read, in order.
        identity: What answers depend on, by name. Another run with the same would give the same.
        shard: Which of its rows were taken.
        started_at: ISO 8601, UTC.
        ended_at: The same; None until then.
        counts: How many rows ended how, and the like.
        versions: Of this program, Python and the libraries under it.
        host: Name of the machine.
    """

    model: str
    model_hash: str | None = None
    tokenizer_hash: str | None = None
    chat_template_hash: str | None = None
    options: Mapping[str, object] = field(default_factory=dict)
    sampling_params: SamplingParams = field(default_factory=SamplingParams)
    seed: int = 0
    inputs: tuple[InputFile, ...] = ()
    identity: Mapping[str, object] = field(default_factory=dict)
    shard: Shard = WHOLE
    started_at: str = field(default_factory=lambda: utc_now())
    ended_at: str | None = None
    counts: Mapping[str, int] = field(default_factory=dict)
    versions: Mapping[str, str | None] = field(default_factory=lambda: installed_versions())
    host: str = field(default_factory=socket.gethostname)

    def ended(self, counts: Mapping[str, int] | None = None) -> Manifest:
        """Returns the manifest of the same run at its end, which is now."""
        return replace(self, ended_at=utc_now(), counts=dict(counts or self.counts))

    def to_dict(self) -> dict[str, object]:
        """Returns it as JSON can hold it, with every secret hidden."""
        value = redacted(self)
        assert isinstance(value, dict), "a dataclass is redacted to a dict"
        return value

    def to_json(self) -> str:
        """Returns it as one line of JSON, with every secret hidden."""
        return json.dumps(self.to_dict(), ensure_ascii=False)

    def metadata(self) -> dict[str, str]:
        """Returns it as the key-value metadata of a Parquet file."""
        return {MANIFEST_KEY: self.to_json()}


def describe_inputs(source: RowSource) -> tuple[InputFile, ...]:
    """Returns the files of an input with their hashes; of a stream only what it was called.

    Raises:
        DatasetError: A file cannot be read.
    """
    if not source.paths:
        return (InputFile(path=source.source),)
    return tuple(_describe(path) for path in source.paths)


def installed_versions() -> dict[str, str | None]:
    """Returns the versions of this program, Python and the libraries under it, importing none."""
    versions: dict[str, str | None] = {_PROGRAM: _version(_PROGRAM)}
    versions["python"] = platform.python_version()
    return versions | {name: _version(name) for name in _LIBRARIES}


def utc_now() -> str:
    """Returns the time as ISO 8601, in UTC and to the millisecond."""
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="milliseconds")


def _describe(path: Path) -> InputFile:
    if not path.is_file():
        return InputFile(path=str(path))
    return InputFile(path=str(path), num_bytes=path.stat().st_size, hash=hash_file(path))


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None  # run from a checkout, or on a machine without it
