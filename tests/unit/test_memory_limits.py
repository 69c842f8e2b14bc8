"""What may still be taken, on machines made of a few files; and what is said where it is not."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from furiosa_llm.config import EngineArgs
from furiosa_llm.errors import ConfigError
from furiosa_llm.execution import kv_cache
from furiosa_llm.memory_limits import free_memory_bytes
from furiosa_llm.modeling.layer_shape import LayerShape

GIB = 2**30
SHAPES = [LayerShape(num_kv_heads=2, key_size=16, value_size=16)] * 4
BLOCK_BYTES = 4 * 2 * 32 * 16 * 4


def make_machine(root: Path, *, available: int = 8 * GIB, cgroup: str = "0::/\n") -> Path:
    write(root / "proc/meminfo", f"MemTotal: 99 kB\nMemAvailable:  {available // 1024} kB\n")
    write(root / "proc/self/cgroup", cgroup)
    return root


def make_group(folder: Path, *, limit: int | str, used: int, cached: int = 0) -> None:
    is_v1 = "cgroup/memory" in str(folder)
    write(folder / ("memory.limit_in_bytes" if is_v1 else "memory.max"), f"{limit}\n")
    write(folder / ("memory.usage_in_bytes" if is_v1 else "memory.current"), f"{used}\n")
    prefix = "total_" if is_v1 else ""
    write(folder / "memory.stat", f"anon 5\ninactive_file 0\n{prefix}inactive_file {cached}\n")
    if not is_v1:
        write(folder / "memory.stat", f"anon 5\ninactive_file {cached}\n")


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def choose(available_bytes: int, num_blocks: int | None = None) -> int:
    args = EngineArgs(
        model="m", paged_attention_num_blocks=num_blocks, paged_attention_block_size=16
    )
    return kv_cache.choose_num_blocks(
        args,
        SHAPES,
        dtype=torch.float32,
        max_model_len=4096,
        max_num_seqs=256,
        available_bytes=available_bytes,
    )


def allocate(num_blocks: int) -> None:
    kv_cache.allocate(SHAPES, dtype=torch.float32, num_blocks=num_blocks, block_size=16)


def test_without_limits_it_is_what_the_machine_has(tmp_path: Path) -> None:
    make_group(make_machine(tmp_path) / "sys/fs/cgroup", limit="max", used=GIB)

    assert free_memory_bytes(tmp_path) == 8 * GIB


@pytest.mark.parametrize("base", ["sys/fs/cgroup", "sys/fs/cgroup/memory"])
def test_each_control_group_around_the_process_counts(tmp_path: Path, base: str) -> None:
    is_v1 = base.endswith("memory")
    lines = "7:cpu,cpuacct:/\n4:memory:/a/b\n0::/\n" if is_v1 else "0::/a/b\n"
    root = make_machine(tmp_path, cgroup=lines)
    make_group(root / base, limit=6 * GIB, used=2 * GIB)
    make_group(root / base / "a", limit=4 * GIB, used=3 * GIB, cached=GIB)
    make_group(root / base / "a/b", limit=2**63 - 4096, used=GIB)

    assert free_memory_bytes(root) == 2 * GIB


def test_a_container_that_sees_only_its_own_group_is_limited_by_it(tmp_path: Path) -> None:
    root = make_machine(tmp_path, cgroup="4:memory:/docker/0123\n")
    make_group(root / "sys/fs/cgroup/memory", limit=3 * GIB, used=GIB)

    assert free_memory_bytes(root) == 2 * GIB


def test_a_group_that_is_over_its_limit_leaves_nothing(tmp_path: Path) -> None:
    make_group(make_machine(tmp_path) / "sys/fs/cgroup", limit=GIB, used=2 * GIB)

    assert free_memory_bytes(tmp_path) == 0


def test_a_machine_that_does_not_tell_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="does not tell MemAvailable"):
        free_memory_bytes(tmp_path)


def test_blocks_leave_room_for_what_steps_compute() -> None:
    available = kv_cache.HEADROOM_BYTES + 100 * BLOCK_BYTES

    assert choose(available) == 50  # the other half is for other processes
    assert choose(available, 100) == 100
    with pytest.raises(ConfigError, match=r"\(101\) needs .* at most 100 blocks fit$"):
        choose(available, 101)
    with pytest.raises(ConfigError, match="one KV-cache block takes"):
        choose(kv_cache.HEADROOM_BYTES + BLOCK_BYTES)


def test_the_longest_sequence_fits_that_ends_within_a_block() -> None:
    num_blocks = kv_cache.choose_num_blocks(
        EngineArgs(model="m", paged_attention_block_size=16),
        SHAPES,
        dtype=torch.float32,
        max_model_len=40,
        max_num_seqs=1,
        available_bytes=16 * GIB,
    )

    assert num_blocks == 3


def test_pairs_take_half_the_memory() -> None:
    assert kv_cache.block_bytes(SHAPES, 16, torch.float32) == BLOCK_BYTES
    assert kv_cache.block_bytes(SHAPES, 16, torch.bfloat16) == BLOCK_BYTES // 2


def test_blocks_that_cannot_be_allocated_are_one_clear_error() -> None:
    with pytest.raises(ConfigError, match=r"^there is no memory for \d+ KV-cache .* fit: lower"):
        allocate(2**46 // BLOCK_BYTES)


@pytest.mark.parametrize(
    ("call", "said"),
    [
        ("choose(free_memory_bytes(), 2 * GIB // BLOCK_BYTES)", "blocks fit"),
        (
            "allocate(2 * GIB // BLOCK_BYTES)",
            "there is no memory for 131072 KV-cache blocks (2.00 GiB); about ",
        ),
    ],
)
def test_a_limit_of_the_process_is_met_before_the_kernel_does(call: str, said: str) -> None:
    code = (
        "import resource\n"
        "from tests.unit.test_memory_limits import *\n"
        "lines = Path('/proc/self/status').read_text().splitlines()\n"
        "size = next(int(line.split()[1]) for line in lines if line.startswith('VmSize'))\n"
        "limit = size * 1024 + kv_cache.HEADROOM_BYTES + GIB // 2\n"
        "resource.setrlimit(resource.RLIMIT_AS, (limit, limit))\n"
        f"try:\n    {call}\n"
        "except ConfigError as error:\n    print(error)\n"
    )
    env = {**os.environ, "PYTHONPATH": os.pathsep.join([*sys.path, str(Path(__file__).parents[2])])}

    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=env, check=True
    )

    assert said in done.stdout
