"""How many blocks a GPU holds, and what is said where it holds too little."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch

from furiosa_llm.artifact.contents import Bucket
from furiosa_llm.artifact_builder.build import build_artifact
from furiosa_llm.artifact_builder.options import BuildOptions
from furiosa_llm.config import EngineArgs
from furiosa_llm.errors import ConfigError
from furiosa_llm.execution import gpu_memory
from furiosa_llm.execution.decode_graphs import DecodeShape
from furiosa_llm.execution.gpu_memory import MemoryUse, largest_step, measure
from furiosa_llm.execution.gpu_start import decode_shapes
from furiosa_llm.execution.prepared_model import prepare_model
from furiosa_llm.execution.token_caches import block_bytes
from furiosa_llm.modeling.gpu.token_cache import TokenCache
from furiosa_llm.modeling.layer_shape import LayerShape
from furiosa_llm.scheduler_config import SchedulerConfig
from furiosa_llm.scheduler_output import SchedulerOutput, StepResult
from tests.unit.gpu.gpu_path import GpuPath

GIB = 2**30
CONFIG = SchedulerConfig(max_num_seqs=4, max_num_batched_tokens=1000)


@dataclass
class FakeGpu:
    """A GPU of 80 GiB, of which 20 are held; a step takes 10 MiB for each token."""

    left_to_steps: int = 60 * GIB
    token_bytes: int = 10 * 2**20
    tried: list[int] = field(default_factory=list)

    def total(self) -> int:
        return 80 * GIB

    def free(self) -> int:
        return 60 * GIB

    def allocated(self) -> int:
        return 16 * GIB

    def forget_peak(self) -> None:
        self._peak = 0

    def peak(self) -> int:
        return self._peak

    def run(self, step: SchedulerOutput) -> StepResult:
        self.tried.append(step.num_tokens)
        taken = step.num_tokens * self.token_bytes
        if taken > self.left_to_steps:
            raise torch.OutOfMemoryError("CUDA out of memory")
        self._peak = self.allocated() + taken
        return StepResult(token_ids={})


def test_what_the_largest_step_computes_is_measured() -> None:
    gpu = FakeGpu()

    use = measure(gpu.run, gpu, CONFIG, max_model_len=4096)

    assert use == MemoryUse(total=80 * GIB, held=20 * GIB, step=1000 * 10 * 2**20)
    assert gpu.tried == [1000]
    assert use.left_within(0.9) == 72 * GIB - use.held - use.step
    assert use.left_within(0.1) == 0


def test_a_step_that_does_not_fit_is_refused_with_one_that_does() -> None:
    gpu = FakeGpu(left_to_steps=3 * GIB)

    with pytest.raises(ConfigError) as refusal:
        measure(gpu.run, gpu, CONFIG, max_model_len=4096)

    assert str(refusal.value) == (
        "a step of 1000 tokens of 4 requests does not fit beside the 20.00 GiB that are held of "
        "80.00 GiB of GPU memory; one of 250 tokens fits: lower --max-num-batched-tokens or "
        "--max-num-seqs"
    )
    assert len(gpu.tried) == 3


def test_a_rank_tries_no_step_that_the_others_do_not_run() -> None:
    gpu = FakeGpu(left_to_steps=GIB)

    with pytest.raises(ConfigError, match=r"of GPU memory: lower --max-num-batched-tokens"):
        measure(gpu.run, gpu, CONFIG, max_model_len=4096, is_alone=False)

    assert gpu.tried == [1000]


def test_the_largest_step_has_all_requests_and_no_sequence_too_long() -> None:
    step = largest_step(CONFIG, num_tokens=1000, max_model_len=100)

    assert [share.num_tokens for share in step.requests] == [100] * 4
    assert all(share.samples_token for share in step.requests)
    assert largest_step(CONFIG, num_tokens=2, max_model_len=100).num_tokens == 2


def choose(use: MemoryUse, **options: Any) -> int:
    return gpu_memory.choose_num_blocks(
        EngineArgs(model="m", paged_attention_block_size=16, **options),
        use,
        block_bytes=2**20,
        max_model_len=160_000,
        max_num_seqs=16,
    )


def test_the_largest_step_has_no_fewer_tokens_than_asked_for() -> None:
    config = SchedulerConfig(max_num_seqs=3, max_num_batched_tokens=10)

    assert largest_step(config, num_tokens=10, max_model_len=64).num_tokens >= 10


def test_blocks_take_what_is_left_of_the_share() -> None:
    use = MemoryUse(total=80 * GIB, held=20 * GIB, step=4 * GIB)

    assert choose(use) == 48 * 1024 - 1  # of 72 GiB; one more block is nobody's
    assert choose(use, gpu_memory_utilization=0.5) == 16 * 1024 - 1
    assert choose(use, paged_attention_num_blocks=5000) == 5000
    # No more than 16 sequences can fill.
    assert choose(MemoryUse(total=800 * GIB, held=0, step=0)) == 160_000


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"paged_attention_num_blocks": 50_000},
            "paged_attention_num_blocks (50000) needs 48.83 GiB, but 90% of the GPU's 80.00 GiB "
            "are to be used, 20.00 GiB are held and a step takes 4.00 GiB; at most 49151 blocks "
            "fit",
        ),
        (
            {"gpu_memory_utilization": 0.3},
            "there is no memory for KV-cache blocks of 0.00 GiB: 30% of the GPU's 80.00 GiB are "
            "to be used, 20.00 GiB are held and a step takes 4.00 GiB; raise "
            "--gpu-memory-utilization, or lower --max-num-batched-tokens or --max-num-seqs",
        ),
    ],
)
def test_what_does_not_fit_is_refused_with_what_would(
    options: dict[str, Any], message: str
) -> None:
    use = MemoryUse(total=80 * GIB, held=20 * GIB, step=4 * GIB)

    with pytest.raises(ConfigError) as refusal:
        choose(use, **options)

    assert str(refusal.value) == message


def test_weights_that_exceed_the_memory_are_refused_before_they_are_copied() -> None:
    gpu_memory.require_room_for_weights(59 * GIB, FakeGpu())

    with pytest.raises(ConfigError, match=r"take 61.00 GiB, but 60.00 GiB of the GPU's 80.00 GiB"):
        gpu_memory.require_room_for_weights(61 * GIB, FakeGpu())


def test_a_block_takes_what_the_type_takes() -> None:
    shapes = [LayerShape(num_kv_heads=8, key_size=64, value_size=64)] * 16

    assert block_bytes(shapes, block_size=32, dtype=torch.bfloat16) == 16 * 32 * 8 * 128 * 2


def test_the_largest_step_runs_with_a_cache_of_one_block(
    checkpoint: Callable[[str], Path],
) -> None:
    path = GpuPath.of(checkpoint("Llama"), num_blocks=1)
    step = largest_step(CONFIG, num_tokens=300, max_model_len=512)

    result = path.runner.launch(step).result()

    assert result.token_ids.keys() == {0}
    assert not result.failures


def test_blocks_that_cannot_be_allocated_are_one_clear_error(
    checkpoint: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> TokenCache:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(TokenCache, "allocate", refuse)

    with pytest.raises(ConfigError, match=r"no memory on cpu for 64 KV-cache blocks of .* lower"):
        GpuPath.of(checkpoint("Llama"))


@pytest.mark.parametrize("share", [0.0, -0.5, 1.1])
def test_a_share_is_more_than_nothing_and_no_more_than_all(share: float) -> None:
    with pytest.raises(ConfigError, match=r"gpu_memory_utilization must be in \(0, 1\], got"):
        EngineArgs(model="m", gpu_memory_utilization=share)


def test_on_a_cpu_the_share_of_a_gpu_is_refused(checkpoint: Callable[[str], Path]) -> None:
    args = EngineArgs(model=str(checkpoint("Llama")), gpu_memory_utilization=0.5)

    with pytest.raises(ConfigError, match=r"\(0.5\) is for GPUs, and the model runs on a CPU"):
        prepare_model(args)


def test_graphs_cover_what_runs_at_once(checkpoint: Callable[[str], Path]) -> None:
    args = EngineArgs(model=str(checkpoint("Llama")), max_num_seqs=3)

    shapes = decode_shapes(args, max_model_len=100)

    assert [(shape.batch_size, shape.length) for shape in shapes] == [(1, 100), (2, 100), (3, 100)]


def test_an_artifact_says_what_graphs_are_recorded_for(
    checkpoint: Callable[[str], Path], tmp_path: Path
) -> None:
    options = BuildOptions(decode_buckets=(Bucket(4, 256), Bucket(8, 128)))
    build_artifact(str(checkpoint("Llama")), tmp_path / "artifact", options)
    args = EngineArgs(model=str(tmp_path / "artifact"))

    shapes = decode_shapes(args, max_model_len=512)

    assert set(shapes) == {DecodeShape(4, 256), DecodeShape(8, 128)}
