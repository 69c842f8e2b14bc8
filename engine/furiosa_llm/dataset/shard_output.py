"""The outputs of shards: whether they are there, complete, and of the same run."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from furiosa_llm.dataset.run_output import output_files
from furiosa_llm.dataset.shard import Shard
from furiosa_llm.dataset.shard_file import ShardFile, open_shard_file
from furiosa_llm.errors import ConfigError, DatasetError


@dataclass(frozen=True, slots=True, kw_only=True)
class ShardOutput:
    """The whole output of a shard.

    Attributes:
        path: The file, or the folder.
        shard: Which one it is.
        files: What holds its rows, in order.
    """

    path: Path
    shard: Shard
    files: tuple[ShardFile, ...]

    @property
    def manifest(self) -> Mapping[str, Any]:
        """What the run was."""
        return self.files[0].manifest

    @property
    def num_rows(self) -> int:
        """How many rows it holds."""
        return sum(file.num_rows for file in self.files)


def open_shard_output(path: Path) -> ShardOutput:
    """Reads the footers of a shard's output.

    Raises:
        DatasetError: It cannot be read, is not complete, or is no output of a shard.
    """
    files = tuple(map(open_shard_file, output_files(path)))
    manifest = files[0].manifest
    try:
        shard = Shard(**manifest["shard"])
        num_rows = manifest["counts"]["num_rows"]
    except (KeyError, TypeError, ConfigError) as error:
        raise DatasetError(f"{path}: its manifest does not say what it holds") from error
    output = ShardOutput(path=path, shard=shard, files=files)
    if output.num_rows != num_rows:
        raise DatasetError(
            f"{path}: holds {output.num_rows} of the {num_rows} rows of shard {shard}; run the "
            "shard again"
        )
    return output


def check_one_run(outputs: Sequence[ShardOutput]) -> None:
    """Makes sure that the outputs are different shards of one run.

    Raises:
        ConfigError: They are not; the message names what differs.
    """
    first = outputs[0]
    known: dict[int, ShardOutput] = {}
    for output in outputs:
        for name, ours, theirs in _differences(first, output):
            raise ConfigError(
                f"{first.path} and {output.path} are not of one run: {name} is {ours!r} and "
                f"{theirs!r}"
            )
        twin = known.setdefault(output.shard.number, output)
        if twin is not output:
            raise ConfigError(
                f"{twin.path} and {output.path} both hold shard {output.shard}; give one of them"
            )
    if not missing_shards(outputs):
        _check_sizes(outputs)


def missing_shards(outputs: Sequence[ShardOutput]) -> list[Shard]:
    """Returns the shards of the run that are not among the outputs."""
    count = outputs[0].shard.count
    there = {output.shard.number for output in outputs}
    return [Shard(number, count) for number in range(1, count + 1) if number not in there]


def _differences(first: ShardOutput, second: ShardOutput) -> Iterator[tuple[str, object, object]]:
    ours, theirs = _described(first), _described(second)
    for name, value in ours.items():
        if value != theirs.get(name):
            yield name, value, theirs.get(name)


def _described(output: ShardOutput) -> dict[str, object]:
    """What must be the same: all that answers depend on, but which rows were answered."""
    identity = dict(output.manifest.get("identity", {}))
    identity.pop("shard", None)
    return {
        "the number of shards": output.shard.count,
        "the chat template": output.manifest.get("chat_template_hash"),
        **identity,
    }


def _check_sizes(outputs: Sequence[ShardOutput]) -> None:
    """An input without a hash, such as a stream, may have been another one for each shard."""
    num_rows = sum(output.num_rows for output in outputs)
    for output in outputs:
        expected = output.shard.num_rows_of(num_rows)
        if output.num_rows != expected:
            raise ConfigError(
                f"{output.path} has {output.num_rows} rows, but shard {output.shard} of "
                f"{num_rows} rows has {expected}; the shards were not of the same input"
            )
