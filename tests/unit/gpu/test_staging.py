"""All numbers of a step lie in one piece, and are read back as they were."""

from __future__ import annotations

import numpy as np
import torch

from furiosa_llm.execution.block_tables import BlockTables
from furiosa_llm.execution.input_batch import InputBatch
from furiosa_llm.execution.staging import PackedArrays
from tests.unit.gpu.gpu_factories import make_share, make_step

CPU = torch.device("cpu")


def test_arrays_of_any_type_and_shape_come_back_from_one_buffer() -> None:
    arrays: dict[str, np.ndarray] = {
        "ids": np.arange(7, dtype=np.int64),
        "table": np.arange(6, dtype=np.int32).reshape(2, 3),
        "none": np.zeros((0, 3), np.int32),
        "last": np.array([2**40], np.int64),
    }

    packed = PackedArrays.of(arrays, CPU)
    views = packed.to(CPU)

    assert views.keys() == arrays.keys()
    for name, array in arrays.items():
        assert views[name].numpy().dtype == array.dtype
        assert np.array_equal(views[name].numpy(), array)
        assert views[name].untyped_storage().data_ptr() == packed.buffer.data_ptr()
        assert views[name].data_ptr() % 64 == 0 or not array.size


def test_a_later_step_of_the_same_shape_goes_into_the_same_places() -> None:
    first = PackedArrays.of({"a": np.arange(3), "b": np.arange(5)}, CPU)
    static = first.views(first.buffer)

    first.buffer.copy_(
        PackedArrays.of({"a": np.arange(3) + 10, "b": np.arange(5) + 20}, CPU).buffer
    )

    assert static["a"].tolist() == [10, 11, 12]
    assert static["b"].tolist() == [20, 21, 22, 23, 24]


def test_the_tensors_of_a_step_lie_in_one_piece() -> None:
    step = make_step(
        make_share(5, range(100, 119), start=30, block_ids=(4, 2, 7, 1)),
        make_share(6, (50,), start=15, block_ids=(3,)),
        make_share(7, (60, 61), block_ids=(0,), sampling=None),
    )

    batch = InputBatch.build(step, BlockTables(), block_size=16, device=CPU)

    layout = batch.layout
    assert batch.input_ids.tolist() == [*range(100, 119), 50, 60, 61]
    assert batch.positions.tolist() == [*range(30, 49), 15, 0, 1]
    assert batch.logits_indices.tolist() == [18, 19]
    assert layout.slot_mapping.tolist() == [
        *range(2 * 16 + 14, 2 * 16 + 16),
        *range(7 * 16, 7 * 16 + 16),
        16,
        3 * 16 + 15,
        0,
        1,
    ]
    assert layout.query_start_loc.tolist() == [0, 19, 20, 22]
    assert layout.seq_lens.tolist() == [49, 16, 2]
    assert layout.key_start_loc is not None
    assert layout.key_start_loc.tolist() == [0, 49, 65, 67]
    assert layout.block_tables.tolist() == [[4, 2, 7, 1], [3, 0, 0, 0], [0, 0, 0, 0]]
    assert layout.tasks.tolist() == [[0, 0, 16], [0, 16, 19], [1, 19, 20], [2, 20, 22]]
    assert layout.max_query_len == 19
    tensors = (batch.input_ids, batch.positions, layout.slot_mapping, layout.block_tables)
    assert len({tensor.untyped_storage().data_ptr() for tensor in tensors}) == 1
