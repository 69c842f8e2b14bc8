"""Steps that are replayed say what steps that are run say, and touch nobody's blocks."""

from __future__ import annotations

import logging
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from furiosa_llm.execution.decode_graphs import (
    DecodeGraphs,
    DecodeShape,
    Work,
    default_shapes,
)
from furiosa_llm.execution.input_batch import InputBatch
from furiosa_llm.sampling_params import SamplingParams
from furiosa_llm.scheduler_output import PromptScoring, ScheduledRequest
from tests.checkpoints import MAX_MODEL_LEN, VOCAB_SIZE
from tests.unit.gpu.gpu_factories import make_share, make_step
from tests.unit.gpu.gpu_path import GpuPath, Recording

SHAPES = [DecodeShape(size, length) for size in (1, 2, 4, 8) for length in (64, MAX_MODEL_LEN)]
GREEDY = SamplingParams(temperature=0, max_tokens=20, ignore_eos=True)
SEEDED = SamplingParams(temperature=0.9, top_p=0.9, max_tokens=20, ignore_eos=True)
SCRATCH = 9
BLOCK_SIZE = 16


def make_prompts(*lengths: int) -> list[list[int]]:
    draw = random.Random(0)
    return [[draw.randrange(3, VOCAB_SIZE) for _ in range(length)] for length in lengths]


PROMPTS = make_prompts(1, 7, 33, 70, 16, 50, 3, 15, 31)


@pytest.mark.parametrize("name", ["Llama", "Gemma2", "GptOss"])
@pytest.mark.parametrize("queue_limit", [1, 2])
@pytest.mark.parametrize("params", [GREEDY, SEEDED], ids=["greedy", "seeded"])
def test_answers_with_graphs_are_those_without(
    name: str, queue_limit: int, params: SamplingParams, checkpoint: Callable[[str], Path]
) -> None:
    options: dict[str, Any] = {
        "max_num_seqs": 5,
        "max_num_batched_tokens": 48,
        "npu_queue_limit": queue_limit,
    }
    path = checkpoint(name)
    expected = GpuPath.of(path, **options).answer(PROMPTS, params)

    replayed = GpuPath.of(path, shapes=SHAPES, **options)

    assert replayed.answer(PROMPTS, params) == expected
    assert replayed.recording is not None
    assert 0 < replayed.recording.num_recorded <= len(SHAPES)
    assert replayed.recording.num_replayed > 20


def test_rows_in_excess_write_to_no_block_of_a_request(checkpoint: Callable[[str], Path]) -> None:
    path, prompts = checkpoint("Llama"), PROMPTS[:3]
    plain = GpuPath.of(path)
    expected = plain.answer(prompts, GREEDY)

    padded = GpuPath.of(path, shapes=[DecodeShape(8, MAX_MODEL_LEN)])
    for cache in (*padded.caches, *plain.caches):
        cache.keys[-1].fill_(100)

    assert padded.answer(prompts, GREEDY) == expected
    for ours, theirs in zip(padded.caches, plain.caches, strict=True):
        torch.testing.assert_close(ours.keys[:-1], theirs.keys[:-1])
        torch.testing.assert_close(ours.values[:-1], theirs.values[:-1])
        assert (ours.keys[-1, 0] != 100).all()  # the scratch block
        assert (ours.keys[-1, 1:] == 100).all()
        assert (theirs.keys[-1] == 100).all()


def test_a_shape_is_recorded_once(checkpoint: Callable[[str], Path]) -> None:
    path = GpuPath.of(checkpoint("Llama"), shapes=[DecodeShape(4, MAX_MODEL_LEN)])

    path.answer(PROMPTS[:4], GREEDY)

    assert path.recording == Recording(num_recorded=1, num_replayed=18)


def test_what_cannot_be_recorded_is_run(
    checkpoint: Callable[[str], Path], caplog: pytest.LogCaptureFixture
) -> None:
    class Refusing(Recording):
        def record(self, work: Work) -> Work:
            super().record(work)
            raise RuntimeError("operation not permitted when stream is capturing")

    prompts = PROMPTS[:5]
    expected = GpuPath.of(checkpoint("Llama")).answer(prompts, GREEDY)
    path = GpuPath.of(checkpoint("Llama"), shapes=SHAPES, recording=Refusing())

    with caplog.at_level(logging.WARNING):
        assert path.answer(prompts, GREEDY) == expected

    assert path.recording == Refusing(num_recorded=1)
    assert "steps are not recorded as graphs, which is slower: operation not" in caplog.text


def decode(request_id: int, position: int, **changes: Any) -> ScheduledRequest:
    num_blocks = position // BLOCK_SIZE + 1
    options: dict[str, Any] = {"start": position, "block_ids": range(num_blocks), **changes}
    return make_share(request_id, (5,), **options)


def run(*shares: ScheduledRequest) -> list[tuple[int, int]]:
    """The batches and widths of block tables that the model is called with, in a graph."""
    graphs = DecodeGraphs(
        Recording(),
        [DecodeShape(2, 64), DecodeShape(4, 64), DecodeShape(4, 100)],
        block_size=BLOCK_SIZE,
        scratch_block=SCRATCH,
        device=torch.device("cpu"),
    )
    called: list[tuple[int, int]] = []

    def forward(batch: InputBatch) -> torch.Tensor:
        assert batch.layout.seq_lens.shape == batch.input_ids.shape
        for row in range(len(shares), len(batch.input_ids)):
            assert batch.layout.block_tables[row, 0] == SCRATCH
            assert batch.layout.slot_mapping[row] == SCRATCH * BLOCK_SIZE
        height, width = batch.layout.block_tables.shape
        called.append((height, width))
        return batch.input_ids[:, None] * torch.ones(3)

    ran = graphs.run(make_step(*shares), lambda _: None, forward)

    assert (ran is not None) == bool(called)
    if ran is not None:
        batch, logits = ran
        assert logits.shape == (len(shares), 3)
        assert batch.sampled_request_ids == tuple(share.request_id for share in shares)
    return called


def test_a_step_takes_the_smallest_shape_that_holds_it() -> None:
    assert run(decode(0, 3)) == [(2, 4)]
    assert run(decode(0, 3), decode(1, 63)) == [(2, 4)]
    assert run(decode(0, 3), decode(1, 64)) == [(4, 7)]
    assert run(*(decode(index, 3) for index in range(4))) == [(4, 4)]


@pytest.mark.parametrize(
    "shares",
    [
        pytest.param([decode(0, 100)], id="too long"),
        pytest.param([decode(index, 1) for index in range(5)], id="too many"),
        pytest.param([decode(0, 3), make_share(1, (5, 6), block_ids=(1,))], id="a prefill"),
        pytest.param([decode(0, 3, sampling=None)], id="a chunk"),
        pytest.param(
            [decode(0, 3, scoring=PromptScoring(offset=0, token_ids=(4,), num_top=0))],
            id="a scored prompt",
        ),
    ],
)
def test_a_step_that_no_shape_holds_is_left_alone(shares: list[ScheduledRequest]) -> None:
    assert run(*shares) == []


def test_shapes_cover_every_decode() -> None:
    shapes = default_shapes(max_num_seqs=30, max_model_len=5000)

    assert sorted({shape.batch_size for shape in shapes}) == [1, 2, 4, 8, 16, 24, 30]
    assert sorted({shape.length for shape in shapes}) == [4096, 5000]
    assert len(shapes) == 14
    assert default_shapes(max_num_seqs=1, max_model_len=100) == [DecodeShape(1, 100)]
