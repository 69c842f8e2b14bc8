"""Makes the files that engines read, once each, in a folder that git ignores."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from benchmarks.processes import ROOT
from benchmarks.workloads import WorkloadRow, make_workload, write_workload

TINY_MODEL = "samples/tiny-llama"


@dataclass(frozen=True, slots=True, kw_only=True)
class Models:
    """The folder of checkpoints and GGUF files, named after their shapes."""

    folder: Path

    def checkpoint(self, shape: str) -> Path:
        """Returns a checkpoint's folder."""
        if shape == TINY_MODEL:
            return ROOT / TINY_MODEL
        return self._made(self.folder.absolute() / shape, "checkpoints", shape)

    def gguf(self, shape: str, gguf_type: str) -> Path:
        """Returns a GGUF file with the weights of a checkpoint."""
        path = self.folder.absolute() / f"{shape}-{gguf_type}.gguf"
        if path.exists():
            return path
        checkpoint = str(self.checkpoint(shape))
        return self._made(path, "gguf_export", "--type", gguf_type, checkpoint)

    def config(self, shape: str) -> Mapping[str, int]:
        """Returns a checkpoint's configuration."""
        found: Mapping[str, int] = json.loads((self.checkpoint(shape) / "config.json").read_text())
        return found

    def _made(self, path: Path, module: str, *arguments: str) -> Path:
        """Has a module make a file or folder, which appears under its name when it is complete."""
        if path.exists():
            return path
        path.parent.mkdir(parents=True, exist_ok=True)
        unfinished = path.with_name(f"{path.name}.unfinished")
        if unfinished.is_dir():
            shutil.rmtree(unfinished)
        print(f"making {path}", file=sys.stderr)
        command = [sys.executable, "-m", f"benchmarks.{module}", *arguments, str(unfinished)]
        subprocess.run(command, cwd=ROOT, check=True)
        return unfinished.rename(path)


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkloadFile:
    """A workload on disk.

    Attributes:
        path: The file.
        rows: What it holds.
    """

    path: Path
    rows: list[WorkloadRow]

    @property
    def num_prompt_tokens(self) -> int:
        """Tokens of all prompts."""
        return sum(len(row.prompt_token_ids) for row in self.rows)

    @property
    def num_output_tokens(self) -> int:
        """Tokens of all answers."""
        return sum(row.max_tokens for row in self.rows)


def workload_file(name: str, folder: Path, *, num_rows: int | None = None) -> WorkloadFile:
    """Writes a workload, or the first of its rows, into a folder."""
    rows = list(make_workload(name, num_rows=num_rows))
    path = folder / f"{name}-{len(rows)}.jsonl"
    write_workload(rows, path)
    return WorkloadFile(path=path, rows=rows)
