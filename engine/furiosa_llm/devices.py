"""Which devices a user names: `npu:0:0-3`, `cpu`, `cuda:0,cuda:1`.

    cpu          this whole machine; it holds any number of replicas, stages and ranks
    cpu:N        core N of this machine, one element
    cuda         every GPU there is
    cuda:N       GPU N
    npu:X        all eight processing elements (PEs) of NPU X; also npu:X:*
    npu:X:Y      PE Y, 0 to 7
    npu:X:A-B    PEs A to B: 1, 2, 4 or 8 of them, from a multiple of their number on

Numbers are plain ASCII digits without sign, space or leading zero, so that each device has one
spelling. Nothing here looks at the machine: `expand_devices` is told what it has.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Iterator, Sequence, Set
from dataclasses import dataclass
from typing import Literal, NoReturn

from furiosa_llm.errors import ConfigError

DeviceKind = Literal["npu", "cpu", "cuda"]

MAX_PROCESSES = 1024  # that a size may ask for; what the machine holds is checked at start
NUM_PES_PER_NPU = 8
_PE_RANGE_SIZES = (8, 4, 2, 1)
_MAX_INDEX = 9999
_NUMBER = re.compile(r"0|[1-9][0-9]*")
_EXAMPLES = "npu:0, npu:0:0-3, cpu or cuda:0"


@dataclass(frozen=True, slots=True, kw_only=True)
class Device:
    """A single element that computes; `str` gives the text that names it.

    Attributes:
        kind: What it is.
        index: Which NPU, GPU or core; None for this whole machine (cpu) and for every GPU (cuda).
        pe: Which PE of an NPU; None elsewhere.
    """

    kind: DeviceKind
    index: int | None = None
    pe: int | None = None

    def __str__(self) -> str:
        return ":".join(str(part) for part in (self.kind, self.index, self.pe) if part is not None)


def parse_devices(text: str) -> tuple[Device, ...]:
    """Returns the devices of a comma list, sorted by index and PE.

    Raises:
        ConfigError: An item is no device, two kinds are mixed, or a device is given twice.
    """
    found: dict[Device, str] = {}
    for item in (part.strip() for part in text.split(",")):
        for device in _parse_item(item):
            if device in found:
                raise ConfigError(
                    f"devices {text!r}: {_name(device)} is given twice, by {found[device]!r} and "
                    f"{item!r}; give each device once"
                )
            found[device] = item
    kinds = sorted({device.kind for device in found})
    if len(kinds) > 1:
        raise ConfigError(
            f"devices {text!r}: {' and '.join(kinds)} do not work together; give one kind"
        )
    if len(found) > 1 and Device(kind=kinds[0]) in found:
        raise ConfigError(
            f"devices {text!r}: {kinds[0]} has {kinds[0]}:N in it already; give one of the two"
        )
    return tuple(sorted(found, key=_sort_key))


def expand_devices(
    devices: Sequence[Device], *, num_gpus: int, cores: Set[int]
) -> tuple[Device, ...]:
    """Puts GPUs 0 to `num_gpus` - 1 in place of a plain `cuda`, and checks the others.

    NPUs are emulated: any number of them is there.

    Raises:
        ConfigError: This machine has no such GPU, or this process may not use such a core.
    """
    if tuple(devices) == (Device(kind="cuda"),):
        if num_gpus < 1:
            raise ConfigError("device 'cuda': no GPU was found on this machine; use cpu")
        return tuple(Device(kind="cuda", index=index) for index in range(num_gpus))
    present: dict[DeviceKind, Set[int]] = {"cuda": set(range(num_gpus)), "cpu": cores}
    for device in devices:
        indices = present.get(device.kind)
        if indices is not None and device.index is not None and device.index not in indices:
            there = ", ".join(f"{device.kind}:{index}" for index in sorted(indices))
            raise ConfigError(
                f"device {str(device)!r} is not on this machine or not for this process to use; "
                f"there are: {there or 'none'}"
            )
    return tuple(devices)


def format_devices(devices: Iterable[Device]) -> str:
    """Returns the shortest text that names these devices, as `parse_devices` reads it."""
    ordered = sorted(set(devices), key=_sort_key)
    if not ordered or ordered[0].kind != "npu":
        return ",".join(map(str, ordered))
    texts: list[str] = []
    for npu, members in itertools.groupby(ordered, key=lambda device: device.index):
        texts += _pe_ranges(f"npu:{npu}", {device.pe or 0 for device in members})
    return ",".join(texts)


def _parse_item(item: str) -> Iterator[Device]:
    kind, *parts = item.split(":")
    match kind:
        case "npu":
            yield from _parse_npu(item, parts)
        case "cpu" | "cuda":
            if len(parts) > 1:
                _refuse(item, "the device string has too many colons", f"{kind}:0")
            noun = "core" if kind == "cpu" else "GPU"
            yield Device(kind=kind, index=_index(item, noun, parts[0]) if parts else None)
        case "":
            _refuse(item, "the device string is empty", _EXAMPLES)
        case _:
            _refuse(item, f"the device string has an unknown kind {kind!r}", _EXAMPLES)


def _parse_npu(item: str, parts: list[str]) -> Iterator[Device]:
    match parts:
        case []:
            _refuse(item, "the NPU index is missing", "npu:0")
        case [npu]:
            index, pes = _index(item, "NPU", npu), range(NUM_PES_PER_NPU)
        case [npu, pe]:
            index, pes = _index(item, "NPU", npu), _pe_range(item, pe)
        case _:
            _refuse(item, "the device string has too many colons", "npu:0:3 or npu:0:0-3")
    for number in pes:
        yield Device(kind="npu", index=index, pe=number)


def _index(item: str, noun: str, text: str) -> int:
    example = item.partition(":")[0] + ":0"
    if not _NUMBER.fullmatch(text):
        _refuse(item, f"the {noun} index {text!r} is not a number", f"plain digits, as {example}")
    if len(text) > len(str(_MAX_INDEX)):
        _refuse(item, f"the {noun} index {text} is out of range", f"0 to {_MAX_INDEX}")
    return int(text)


def _pe_range(item: str, text: str) -> range:
    if text == "*":
        return range(NUM_PES_PER_NPU)
    if "-" in text:
        low, _, high = text.partition("-")
        return _checked_pe_range(item, text, low, high)
    if not _NUMBER.fullmatch(text):
        _refuse(item, f"the PE index {text!r} is not a number", "0 to 7, a range as 0-3, or *")
    if not _is_pe(text):
        _refuse(item, f"the PE index {text} is out of range", "0 to 7")
    return range(int(text), int(text) + 1)


def _checked_pe_range(item: str, text: str, low: str, high: str) -> range:
    if not (_NUMBER.fullmatch(low) and _NUMBER.fullmatch(high)):
        _refuse(item, f"the PE range {text!r} is not made of two numbers", "a range as 0-3")
    if not (_is_pe(low) and _is_pe(high)):
        _refuse(item, f"the PE range {text} is out of range", "numbers from 0 to 7")
    first, stop = int(low), int(high) + 1
    size = stop - first
    if size < 1:
        _refuse(item, f"the PE range {text} runs backwards", f"{high}-{low}")
    if size not in _PE_RANGE_SIZES:
        _refuse(item, f"the PE range {text} holds {size} PEs", "a range of 1, 2, 4 or 8")
    if first % size:
        aligned = [f"{start}-{start + size - 1}" for start in range(0, NUM_PES_PER_NPU, size)]
        choices = f"{', '.join(aligned[:-1])} or {aligned[-1]}"
        _refuse(item, f"the PE range {text} is not aligned to its length {size}", choices)
    return range(first, stop)


def _is_pe(number: str) -> bool:
    return len(number) == 1 and int(number) < NUM_PES_PER_NPU


def _refuse(item: str, what: str, instead: str) -> NoReturn:
    raise ConfigError(f"device {item!r}: {what}; write {instead}")


def _pe_ranges(npu: str, pes: set[int]) -> Iterator[str]:
    """Yields the fewest ranges that hold these PEs and no other."""
    if len(pes) == NUM_PES_PER_NPU:
        yield npu
        return
    start = 0
    while start < NUM_PES_PER_NPU:
        size = next(
            (
                n
                for n in _PE_RANGE_SIZES
                if not start % n and pes.issuperset(range(start, start + n))
            ),
            0,
        )
        if size:
            yield f"{npu}:{start}" if size == 1 else f"{npu}:{start}-{start + size - 1}"
        start += size or 1


def _name(device: Device) -> str:
    return f"PE {device}" if device.kind == "npu" else str(device)


def _sort_key(device: Device) -> tuple[int, int]:
    return (
        -1 if device.index is None else device.index,
        -1 if device.pe is None else device.pe,
    )
