"""Joins the outputs of shards into the output that one run would have written."""

from __future__ import annotations

import contextlib
import json
import shutil
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from furiosa_llm.dataset.durable import sync_folder, writing
from furiosa_llm.dataset.final import write_final_file
from furiosa_llm.dataset.manifest import MANIFEST_KEY
from furiosa_llm.dataset.parts import PartInfo
from furiosa_llm.dataset.run_lock import RunLock, is_locked
from furiosa_llm.dataset.shard import WHOLE, Shard
from furiosa_llm.dataset.shard_file import as_part
from furiosa_llm.dataset.shard_output import (
    ShardOutput,
    check_one_run,
    missing_shards,
    open_shard_output,
)
from furiosa_llm.dataset.target import OutputTarget, check_output
from furiosa_llm.errors import ConfigError, DatasetError


@dataclass(frozen=True, slots=True, kw_only=True)
class JoinSummary:
    """What was joined.

    Attributes:
        num_rows: Rows of the output.
        num_failed: Rows among them that have an error.
        missing: Shards whose rows are not in it.
    """

    num_rows: int
    num_failed: int
    missing: tuple[Shard, ...]


def join_shards(
    output: str, shards: Sequence[Path], *, overwrite: bool = False, allow_missing: bool = False
) -> JoinSummary:
    """Writes one file with the rows of all shards, in the order of the input.

    It holds a little of each shard in memory, and needs room for the rows beside the output.

    Args:
        output: The file; it appears under its name when it is complete.
        shards: Their outputs, files or folders, in any order.
        overwrite: Replace an output that exists already.
        allow_missing: Write the rows that are there even if those of some shards are not.

    Raises:
        ConfigError: The shards are not of one run, or one is given twice.
        DatasetError: A shard is missing, cannot be read, or the output cannot be written.
    """
    target = _checked_output(output, shards, overwrite=overwrite)
    if target.is_folder:
        raise ConfigError(f"{output} is a folder; name a file to join the shards in")
    outputs = sorted(map(open_shard_output, shards), key=lambda one: one.shard.number)
    check_one_run(outputs)
    missing = missing_shards(outputs)
    if missing and not allow_missing:
        verb, outputs_of = ("is", "its output") if len(missing) == 1 else ("are", "their outputs")
        raise DatasetError(
            f"{len(missing)} of {missing[0].count} shards {verb} missing: {_listed(missing)}; name "
            f"{outputs_of}, too, or write what is there with --allow-missing"
        )
    with _scratch_folder(target.path) as folder:
        merged = write_final_file(
            folder,
            list(_parts(outputs, folder)),
            _declared(outputs),
            {MANIFEST_KEY: json.dumps(_joined_manifest(outputs, output), ensure_ascii=False)},
            None if missing else WHOLE,
        )
        with writing(target.path):
            merged.replace(target.path)
            sync_folder(target.path.parent)
    counts = _counts(outputs)
    return JoinSummary(
        num_rows=counts["num_rows"], num_failed=counts["num_failed"], missing=tuple(missing)
    )


def _checked_output(output: str, shards: Sequence[Path], *, overwrite: bool) -> OutputTarget:
    try:
        return check_output(output, shards, overwrite=overwrite)
    except ConfigError as error:  # here the output is no option
        raise ConfigError(str(error).removeprefix("--output ")) from error


def _parts(outputs: Sequence[ShardOutput], folder: Path) -> Iterator[PartInfo]:
    """Makes parts of all files that hold rows."""
    for output in outputs:
        start = 0
        for number, file in enumerate(output.files):
            stop = start + file.num_rows
            path = folder / f"shard-{output.shard.number:06d}-{number:06d}.parquet"
            if file.num_rows:
                yield as_part(file, path, output.shard.row_indexes(start, stop))
            start = stop


def _declared(outputs: Sequence[ShardOutput]) -> pa.Schema | None:
    """The types that the input declares; all shards were of the same one."""
    return outputs[0].files[0].declared


def _joined_manifest(outputs: Sequence[ShardOutput], path: str) -> dict[str, Any]:
    """Tells of the whole run what the manifests of its shards tell."""
    manifests = [output.manifest for output in outputs]
    first = manifests[0]
    return {
        **first,
        "options": {**first["options"], "output": path},
        "identity": {**first.get("identity", {}), "shard": _whole_or_part(outputs)},
        "shard": {"number": WHOLE.number, "count": WHOLE.count},
        "started_at": min(manifest["started_at"] for manifest in manifests),
        "ended_at": max(manifest["ended_at"] for manifest in manifests),
        "counts": dict(_counts(outputs)),
        "host": ", ".join(sorted({manifest["host"] for manifest in manifests})),
        "joined": [_origin(output) for output in outputs],
    }


def _whole_or_part(outputs: Sequence[ShardOutput]) -> str:
    """Says which rows are there; some of the shards are no job that could go on."""
    if missing_shards(outputs):
        return f"only {_listed([output.shard for output in outputs])}"
    return str(WHOLE)


def _origin(output: ShardOutput) -> Mapping[str, Any]:
    kept = ("shard", "host", "started_at", "ended_at", "counts")
    return {"path": str(output.path), **{name: output.manifest[name] for name in kept}}


def _counts(outputs: Sequence[ShardOutput]) -> Counter[str]:
    counts: Counter[str] = Counter()
    for output in outputs:
        counts.update(output.manifest["counts"])
    return counts


def _listed(shards: Sequence[Shard]) -> str:
    shown = ", ".join(map(str, shards[:10]))
    return f"{shown} and {len(shards) - 10} more" if len(shards) > 10 else shown


@contextlib.contextmanager
def _scratch_folder(output: Path) -> Iterator[Path]:
    """Makes a folder beside the output that goes when the block ends, however it ends."""
    folder = output.with_name(f"{output.name}.joining")
    lock = RunLock(folder)
    with writing(folder):
        if is_locked(folder):
            raise DatasetError(f"{output} is being written by another process; wait for its end")
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        lock.acquire()
    try:
        yield folder
    finally:
        lock.release()
        shutil.rmtree(folder, ignore_errors=True)
