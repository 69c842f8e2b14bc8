"""A cache of the Hugging Face hub, as its client lays it out."""

from __future__ import annotations

from pathlib import Path


def add_to_cache(hub: Path, model: str, source: Path, *, revision: str, commit: str) -> Path:
    """Puts a checkpoint there as a commit of a model, and returns its snapshot's folder."""
    folder = hub / f"models--{model.replace('/', '--')}"
    snapshot = folder / "snapshots" / commit
    snapshot.mkdir(parents=True)
    (folder / "refs").mkdir(exist_ok=True)
    (folder / "refs" / revision).write_text(commit)
    (folder / "blobs").mkdir(exist_ok=True)
    for file in source.iterdir():
        if file.is_file():
            blob = folder / "blobs" / f"{commit}-{file.name}"
            blob.write_bytes(file.read_bytes())
            (snapshot / file.name).symlink_to(blob.resolve())
    return snapshot
