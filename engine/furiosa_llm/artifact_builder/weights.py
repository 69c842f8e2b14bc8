"""Reads the weights of a checkpoint and casts them, a few megabytes at a time.

A tensor is never whole in memory, so that a model of any size can be cast on a small machine.
"""

from __future__ import annotations

import dataclasses
import json
import math
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from io import FileIO
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open

from furiosa_llm.errors import ModelLoadError
from furiosa_llm.modeling.weight_files import INDEX_FILE, SINGLE_FILE, read_index

MAX_SHARD_BYTES = 5 * 10**9

_CHUNK_BYTES = 2**24  # a multiple of every item's size
_ALIGNMENT = 8
_FLOATS = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
}
_NAMES = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16"}
_CODES = {name: code for code, name in _NAMES.items()}


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredTensor:
    """A tensor in a file of the checkpoint, and the type it will have.

    Attributes:
        name: As in the checkpoint.
        shape: Its sizes.
        path: File that it is read from.
        start: Where its data begins there.
        num_stored_bytes: What it takes there.
        stored_code: Its type there, as safetensors names it.
        code: Its type in the artifact.
    """

    name: str
    shape: tuple[int, ...]
    path: Path
    start: int
    num_stored_bytes: int
    stored_code: str
    code: str

    @property
    def num_elements(self) -> int:
        """Product of its sizes."""
        return math.prod(self.shape)

    @property
    def num_bytes(self) -> int:
        """What it takes in the artifact."""
        if self.code == self.stored_code:
            return self.num_stored_bytes
        return self.num_elements * _FLOATS[self.code].itemsize


@dataclass(frozen=True, slots=True, kw_only=True)
class Shard:
    """A file of weights to write."""

    name: str
    tensors: tuple[StoredTensor, ...]


def find_tensors(folder: Path, dtype: str, kept: Sequence[str] = ()) -> list[StoredTensor]:
    """Returns the tensors of a checkpoint, in the order in which they lie there.

    Args:
        folder: The checkpoint.
        dtype: What floats of 16 to 64 bits become; `auto` for what they are.
        kept: Regular expressions; a tensor whose name has one of them is not cast.

    Raises:
        ModelLoadError: A file is missing or damaged, or there are no safetensors.
    """
    is_kept = re.compile("|".join(kept)).search if kept else lambda _: None
    tensors: dict[str, StoredTensor] = {}
    for path in _weight_files(folder):
        for tensor in _read_header(path):
            if tensor.name in tensors:
                raise ModelLoadError(
                    f"{path}: holds {tensor.name}, which {tensors[tensor.name].path.name} holds, "
                    "too; remove the file that does not belong to the checkpoint"
                )
            if dtype != "auto" and tensor.code in _FLOATS and not is_kept(tensor.name):
                tensor = dataclasses.replace(tensor, code=_CODES[dtype])
            tensors[tensor.name] = tensor
    return list(tensors.values())


def main_dtype(tensors: Sequence[StoredTensor]) -> str:
    """Returns the type that most of the weights have in the artifact."""
    sizes: Counter[str] = Counter()
    for tensor in tensors:
        sizes[tensor.code] += tensor.num_elements
    code = sizes.most_common(1)[0][0] if sizes else "F32"
    return _NAMES.get(code, code.lower())


def plan_shards(
    tensors: Sequence[StoredTensor], *, max_bytes: int = MAX_SHARD_BYTES
) -> list[Shard]:
    """Divides tensors among files, one if they fit; a tensor is never cut."""
    groups: list[list[StoredTensor]] = [[]]
    num_bytes = 0
    for tensor in tensors:
        if groups[-1] and num_bytes + tensor.num_bytes > max_bytes:
            groups.append([])
            num_bytes = 0
        groups[-1].append(tensor)
        num_bytes += tensor.num_bytes
    if len(groups) == 1:
        return [Shard(name=SINGLE_FILE, tensors=_aligned(groups[0]))]
    return [
        Shard(name=f"model-{number:05d}-of-{len(groups):05d}.safetensors", tensors=_aligned(group))
        for number, group in enumerate(groups, start=1)
    ]


def shard_index(shards: Sequence[Shard]) -> dict[str, object]:
    """Returns the content of the index that tells which file holds which tensor."""
    return {
        "metadata": {
            "total_size": sum(tensor.num_bytes for shard in shards for tensor in shard.tensors)
        },
        "weight_map": {
            tensor.name: shard.name
            for shard in shards
            for tensor in sorted(shard.tensors, key=lambda tensor: tensor.name)
        },
    }


def shard_chunks(shard: Shard) -> Iterator[bytes | bytearray | memoryview]:
    """Yields the content of a file of weights, cast on the way.

    Raises:
        ModelLoadError: The checkpoint cannot be read, or a value does not fit its new type.
    """
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for tensor in shard.tensors:
        header[tensor.name] = {
            "dtype": tensor.code,
            "shape": list(tensor.shape),
            "data_offsets": [offset, offset + tensor.num_bytes],
        }
        offset += tensor.num_bytes
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % _ALIGNMENT)
    yield len(text).to_bytes(8, "little") + text
    for tensor in shard.tensors:
        yield from _tensor_chunks(tensor)


def _tensor_chunks(tensor: StoredTensor) -> Iterator[bytearray | memoryview]:
    remaining = tensor.num_stored_bytes
    try:
        with tensor.path.open("rb", buffering=0) as file:
            file.seek(tensor.start)
            while remaining:
                chunk = _read_exactly(file, min(_CHUNK_BYTES, remaining), tensor)
                remaining -= len(chunk)
                yield chunk if tensor.code == tensor.stored_code else _cast(chunk, tensor)
    except OSError as error:
        reason = error.strerror or str(error)
        raise ModelLoadError(f"{tensor.path}: cannot be read: {reason}") from error


def _read_exactly(file: FileIO, num_bytes: int, tensor: StoredTensor) -> bytearray:
    chunk = bytearray(num_bytes)
    view, position = memoryview(chunk), 0
    while position < num_bytes:
        num_read = file.readinto(view[position:])
        if not num_read:
            raise ModelLoadError(
                f"{tensor.path}: ends within {tensor.name}; it was changed while it was read"
            )
        position += num_read
    return chunk


def _cast(chunk: bytearray, tensor: StoredTensor) -> memoryview:
    values = torch.frombuffer(chunk, dtype=_FLOATS[tensor.stored_code])
    cast = values.to(_FLOATS[tensor.code])
    if not torch.isfinite(cast).all() and torch.isfinite(values).all():
        raise ModelLoadError(
            f"{tensor.path}: {tensor.name} has values that {_NAMES[tensor.code]} cannot hold; "
            "use --dtype bfloat16"
        )
    return cast.view(torch.uint8).numpy().data


def _weight_files(folder: Path) -> list[Path]:
    single, index = folder / SINGLE_FILE, folder / INDEX_FILE
    if single.is_file():
        return [single]
    if not index.is_file():
        raise ModelLoadError(
            f"{folder}: has neither {SINGLE_FILE} nor {INDEX_FILE}, and pickled weights are not "
            "built from; save the checkpoint with transformers' save_pretrained"
        )
    return [folder / name for name in read_index(index)]


def _read_header(path: Path) -> Iterator[StoredTensor]:
    """Yields the tensors of a file, whose header safetensors itself has found right."""
    try:
        with safe_open(path, framework="pt"), path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            header = json.loads(file.read(length))
    except (OSError, SafetensorError) as error:
        raise ModelLoadError(f"{path}: cannot be read as safetensors: {error}") from error
    header.pop("__metadata__", None)
    for name, entry in sorted(header.items(), key=lambda item: item[1]["data_offsets"]):
        start, stop = entry["data_offsets"]
        yield StoredTensor(
            name=name,
            shape=tuple(entry["shape"]),
            path=path,
            start=8 + length + start,
            num_stored_bytes=stop - start,
            stored_code=entry["dtype"],
            code=entry["dtype"],
        )


def _aligned(tensors: Sequence[StoredTensor]) -> tuple[StoredTensor, ...]:
    # Large items first, so that each lies at a multiple of its size.
    def item_bytes(tensor: StoredTensor) -> int:
        return tensor.num_bytes // tensor.num_elements if tensor.num_elements else 0

    return tuple(sorted(tensors, key=item_bytes, reverse=True))
