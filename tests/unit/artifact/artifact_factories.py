"""Artifacts written by hand, without a model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from furiosa_llm.artifact.contents import (
    ARTIFACT_FILE,
    RUNTIME_FILE,
    Artifact,
    ArtifactFile,
    RuntimeConfig,
    runtime_json,
)
from furiosa_llm.artifact.reading import digest_text, new_digest

WEIGHTS = "model.safetensors"


def write_artifact(
    folder: Path, runtime: RuntimeConfig | None = None, *, weights: bytes = b"w", **changes: Any
) -> Artifact:
    """Writes an artifact whose weights are only bytes, and returns what it says of itself."""
    runtime = runtime or RuntimeConfig()
    folder.mkdir(exist_ok=True)
    contents = {
        "config.json": b"{}\n",
        WEIGHTS: weights,
        RUNTIME_FILE: json.dumps(runtime_json(runtime)).encode(),
    }
    files = []
    for name, content in contents.items():
        (folder / name).write_bytes(content)
        digest = new_digest()
        digest.update(content)
        files.append(ArtifactFile(name=name, num_bytes=len(content), hash=digest_text(digest)))
    values: dict[str, Any] = {
        "name": "tiny",
        "model": "models/tiny",
        "architecture": "LlamaForCausalLM",
        "dtype": "float32",
        "num_parameters": 1,
        "num_weight_bytes": 1,
        "files": tuple(files),
    }
    artifact = Artifact(runtime=runtime, **(values | changes))
    (folder / ARTIFACT_FILE).write_text(json.dumps(artifact.to_json()), encoding="utf-8")
    return artifact


def edit_json(path: Path, **changes: Any) -> None:
    """Changes values in a JSON file; `...` takes one away."""
    content = json.loads(path.read_text(encoding="utf-8")) | changes
    kept = {name: value for name, value in content.items() if value is not ...}
    path.write_text(json.dumps(kept), encoding="utf-8")
