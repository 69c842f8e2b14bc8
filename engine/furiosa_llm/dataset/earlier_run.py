"""What an earlier run to the same output left, and whether it was the same job."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from furiosa_llm.dataset.manifest import MANIFEST_KEY, Manifest
from furiosa_llm.dataset.target import FOLDER_MANIFEST, OutputTarget
from furiosa_llm.errors import ConfigError, DatasetError

PARTS_MANIFEST = "manifest.json"

_MAX_SHOWN = 80
_ABSENT = "not given"


@dataclass(frozen=True, slots=True)
class EarlierRun:
    """A run as its manifest tells of it.

    Attributes:
        path: What the manifest belongs to.
        identity: What its answers depend on.
        started_at: When it began; a run that is resumed keeps it.
        counts: How many rows ended how, if it ended.
    """

    path: Path
    identity: Mapping[str, object]
    started_at: str
    counts: Mapping[str, int]

    def is_same_job(self, manifest: Manifest) -> bool:
        """Whether a run gives the answers that this one gave."""
        return not self._differences(manifest)

    def check_same_job(self, manifest: Manifest) -> None:
        """Refuses to go on with another job.

        Raises:
            ConfigError: It differs, with what it was and what it is now.
        """
        differences = self._differences(manifest)
        if differences:
            raise ConfigError(
                f"--resume: {self.path} is of another job: {'; '.join(differences)}; give the "
                "options of that job, choose another output, or start again with --overwrite and "
                "without --resume"
            )

    def _differences(self, manifest: Manifest) -> list[str]:
        now = manifest.to_dict()["identity"]
        assert isinstance(now, dict), "a mapping is redacted to a dict"
        names = dict.fromkeys([*self.identity, *now])
        pairs = ((name, self.identity.get(name), now.get(name)) for name in names)
        return [
            f"{name} was {_shown(then)}, is now {_shown(value)}"
            for name, then, value in pairs
            if then != value
        ]


def run_of_parts(folder: Path) -> EarlierRun | None:
    """Returns the run that left a folder of parts; None if it had not got so far.

    Raises:
        DatasetError: Its manifest cannot be read.
    """
    path = folder / PARTS_MANIFEST
    try:
        return _run_of(folder, path.read_bytes())
    except FileNotFoundError:
        return None  # it is on the disk before any part
    except (OSError, ValueError) as error:
        raise DatasetError(
            f"{path} cannot be read ({error}), so that no one knows what the parts beside it are; "
            "start again with --overwrite and without --resume"
        ) from error


def run_of_output(target: OutputTarget) -> EarlierRun | None:
    """Returns the run that wrote an output; None if there is none, or none of this program."""
    try:
        if target.path.is_dir():
            text = (target.path / FOLDER_MANIFEST).read_bytes()
        else:
            text = (pq.read_schema(target.path).metadata or {})[MANIFEST_KEY.encode()]
        return _run_of(target.path, text)
    except (OSError, ValueError, KeyError, pa.ArrowException):
        return None


def _run_of(path: Path, text: bytes) -> EarlierRun:
    content = json.loads(text)
    try:
        return EarlierRun(
            path, dict(content["identity"]), str(content["started_at"]), dict(content["counts"])
        )
    except (KeyError, TypeError) as error:
        raise ValueError(f"{error} is missing") from error


def _shown(value: object) -> str:
    if value is None:
        return _ABSENT
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= _MAX_SHOWN else f"{text[:_MAX_SHOWN]}…"
