"""What differs between two runs, by what their manifests tell."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

# Where a run reads and writes, and how it was started: nothing of it tells of answers or speed.
_LEFT_OUT = frozenset(
    {"output", "overwrite", "resume", "retry_failed", "num_examples", "cache_dir", "step_stats"}
    | {"failed_rows", "expected_column", "model", "tokenizer", "input", "seed"}
)


@dataclass(frozen=True, slots=True)
class Change:
    """Something that was one thing in the first run and is another in the second."""

    name: str
    before: object
    after: object


def manifest_changes(before: Mapping[str, Any], after: Mapping[str, Any]) -> tuple[Change, ...]:
    """Returns what differs: what answers depend on, then other options, versions and the host."""
    ours, theirs = _described(before), _described(after)
    names = dict.fromkeys([*ours, *theirs])
    pairs = ((name, ours.get(name), theirs.get(name)) for name in names)
    return tuple(Change(*entry) for entry in pairs if entry[1] != entry[2])


def _described(manifest: Mapping[str, Any]) -> dict[str, object]:
    identity = manifest.get("identity", {})
    options = manifest.get("options", {})
    versions = manifest.get("versions", {})
    return {
        **identity,
        "chat_template": manifest.get("chat_template_hash"),
        **{
            name: value
            for name, value in options.items()
            if name not in identity and name not in _LEFT_OUT
        },
        **{f"version of {name}": value for name, value in versions.items()},
        "host": manifest.get("host"),
    }
