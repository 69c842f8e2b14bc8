"""The workloads that speed is measured on, made from a seed.

    python -m benchmarks.workloads mixed mixed.jsonl

A row is what `furiosa-llm run` reads: prompt tokens and sampling parameters, greedy and of a length
that is known beforehand, so that every engine does the same work.
"""

from __future__ import annotations

import argparse
import json
import random
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

SEED = 20
# Ids below are special tokens of the checkpoints; all vocabularies here are larger.
_FIRST_TOKEN = 3
_VOCAB_SIZE = 49152
_TINY_VOCAB_SIZE = 256


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkloadRow:
    """A prompt and the length of its answer.

    Attributes:
        prompt_token_ids: The prompt.
        max_tokens: Tokens of the answer, no fewer and no more.
    """

    prompt_token_ids: list[int]
    max_tokens: int


def mixed(draws: random.Random) -> Iterator[WorkloadRow]:
    """Yields 64 prompts of 32 to 256 tokens with answers of 32 to 128."""
    for _ in range(64):
        prompt = _tokens(draws, draws.randint(32, 256))
        yield WorkloadRow(prompt_token_ids=prompt, max_tokens=draws.randint(32, 128))


def shared_prefix(draws: random.Random) -> Iterator[WorkloadRow]:
    """Yields 64 shuffled prompts: 48 tokens of their own after 512 of their group, one of four."""
    prefixes = [_tokens(draws, 512) for _ in range(4)]
    rows = [
        WorkloadRow(prompt_token_ids=prefix + _tokens(draws, 48), max_tokens=32)
        for prefix in prefixes
        for _ in range(16)
    ]
    draws.shuffle(rows)
    yield from rows


def long_prompts(draws: random.Random) -> Iterator[WorkloadRow]:
    """Yields 16 prompts of 2,000 tokens with answers of 64."""
    for _ in range(16):
        yield WorkloadRow(prompt_token_ids=_tokens(draws, 2000), max_tokens=64)


def classification(draws: random.Random) -> Iterator[WorkloadRow]:
    """Yields 512 prompts of 40 tokens with answers of 2."""
    for _ in range(512):
        yield WorkloadRow(prompt_token_ids=_tokens(draws, 40), max_tokens=2)


def many_rows(draws: random.Random) -> Iterator[WorkloadRow]:
    """Yields 100,000 prompts of 4 to 12 tokens with answers of one, for a tiny model."""
    for _ in range(100_000):
        prompt = _tokens(draws, draws.randint(4, 12), vocab_size=_TINY_VOCAB_SIZE)
        yield WorkloadRow(prompt_token_ids=prompt, max_tokens=1)


def gpu_mixed(draws: random.Random) -> Iterator[WorkloadRow]:
    """Yields 1,024 prompts of 128 to 512 tokens with answers of 64 to 256."""
    for _ in range(1024):
        prompt = _tokens(draws, draws.randint(128, 512))
        yield WorkloadRow(prompt_token_ids=prompt, max_tokens=draws.randint(64, 256))


def nano_vllm(draws: random.Random) -> Iterator[WorkloadRow]:
    """Yields 256 prompts of 100 to 1,024 tokens with answers of 100 to 1,024, as nano-vllm does."""
    for _ in range(256):
        prompt = _tokens(draws, draws.randint(100, 1024))
        yield WorkloadRow(prompt_token_ids=prompt, max_tokens=draws.randint(100, 1024))


WORKLOADS: Mapping[str, Callable[[random.Random], Iterator[WorkloadRow]]] = {
    "mixed": mixed,
    "shared-prefix": shared_prefix,
    "long-prompts": long_prompts,
    "classification": classification,
    "many-rows": many_rows,
    "gpu-mixed": gpu_mixed,
    "nano-vllm": nano_vllm,
}


def make_workload(
    name: str, *, seed: int = SEED, num_rows: int | None = None
) -> Iterator[WorkloadRow]:
    """Yields the rows of a workload, or the first of them. The same seed gives the same rows."""
    return islice(WORKLOADS[name](random.Random(f"{seed} {name}")), num_rows)


def write_workload(rows: Iterable[WorkloadRow], path: Path) -> None:
    """Writes rows as JSON lines."""
    with path.open("w") as file:
        for row in rows:
            entry = {
                "prompt_token_ids": row.prompt_token_ids,
                "max_tokens": row.max_tokens,
                "ignore_eos": True,
                "temperature": 0,
            }
            file.write(json.dumps(entry, separators=(",", ":")) + "\n")


def read_workload(path: Path) -> list[WorkloadRow]:
    """Reads what `write_workload` wrote."""
    entries = map(json.loads, path.read_text().splitlines())
    return [
        WorkloadRow(prompt_token_ids=entry["prompt_token_ids"], max_tokens=entry["max_tokens"])
        for entry in entries
    ]


def common_length(first: Sequence[int], second: Sequence[int]) -> int:
    """Returns how many tokens two prompts have in common from their start."""
    shorter = min(len(first), len(second))
    return next((i for i in range(shorter) if first[i] != second[i]), shorter)


def main() -> None:
    """Writes the workload that the command line names."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("name", choices=WORKLOADS)
    parser.add_argument("output", type=Path, metavar="OUTPUT.jsonl")
    parser.add_argument("--seed", type=int, default=SEED)
    parser.add_argument("--rows", type=int, metavar="N", help="only the first N")
    args = parser.parse_args()
    write_workload(make_workload(args.name, seed=args.seed, num_rows=args.rows), args.output)


def _tokens(draws: random.Random, number: int, *, vocab_size: int = _VOCAB_SIZE) -> list[int]:
    return draws.choices(range(_FIRST_TOKEN, vocab_size), k=number)


if __name__ == "__main__":
    main()
