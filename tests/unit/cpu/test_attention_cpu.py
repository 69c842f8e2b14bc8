"""The compiled kernel against plain torch in float64, for every variant that models ask for."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from furiosa_llm.execution.block_tables import BlockTables
from furiosa_llm.execution.input_batch import InputBatch
from furiosa_llm.modeling.attention_params import AttentionParams
from furiosa_llm.modeling.cpu.attention import CpuAttention
from furiosa_llm.modeling.cpu.core_threads import CoreThreads
from furiosa_llm.modeling.cpu.layer_cache import LayerCache
from furiosa_llm.modeling.layer_shape import LayerShape
from furiosa_llm.modeling.step_layout import StepLayout
from furiosa_llm.scheduler_output import NO_COUNTS, ScheduledRequest, SchedulerOutput
from tests.attention_reference import torch_attention

NUM_BLOCKS = 40


def make_layout(spans: list[tuple[int, int]], block_size: int) -> StepLayout:
    """Requests that compute the tokens [start, stop), with their blocks shuffled."""
    shuffled = torch.randperm(NUM_BLOCKS, generator=torch.Generator().manual_seed(1)).tolist()
    shares = []
    for index, (start, stop) in enumerate(spans):
        blocks = [shuffled.pop() for _ in range(-(-stop // block_size))]
        shares.append(
            ScheduledRequest(
                request_id=index,
                token_ids=tuple(range(stop - start)),
                start_position=start,
                block_ids=tuple(blocks),
                sampling=None,
            )
        )
    step = SchedulerOutput(requests=tuple(shares), counts=NO_COUNTS)
    return InputBatch.build(
        step, BlockTables(), block_size=block_size, device=torch.device("cpu")
    ).layout


def make_cache(shape: LayerShape, block_size: int) -> LayerCache:
    """A cache that earlier requests left full of other numbers."""
    cache = LayerCache.allocate(shape, num_blocks=NUM_BLOCKS, block_size=block_size)
    cache.blocks.normal_(generator=torch.Generator().manual_seed(2))
    return cache


@pytest.mark.parametrize("block_size", [16, 64])
@pytest.mark.parametrize(
    ("heads", "sizes", "params"),
    [
        pytest.param((4, 2), (32, 32), AttentionParams(scaling=0.2), id="grouped queries"),
        pytest.param((3, 3), (18, 18), AttentionParams(scaling=0.3), id="size not a multiple of 4"),
        pytest.param((4, 4), (48, 24), AttentionParams(scaling=0.1), id="smaller values"),
        pytest.param((8, 1), (16, 16), AttentionParams(scaling=0.3), id="one key head"),
        pytest.param(
            (4, 2), (16, 16), AttentionParams(scaling=0.3, sliding_window=20), id="window"
        ),
        pytest.param((4, 2), (16, 16), AttentionParams(scaling=0.3, softcap=2.0), id="soft cap"),
        pytest.param(
            (4, 2),
            (16, 16),
            AttentionParams(scaling=0.3, sinks=torch.tensor([0.5, -1.0, 3.0, 0.0])),
            id="sinks",
        ),
        pytest.param((2, 2), (16, 16), AttentionParams(scaling=8.0), id="large scores"),
    ],
)
@pytest.mark.parametrize("num_threads", [1, 3])
def test_the_kernel_agrees_with_plain_torch(
    heads: tuple[int, int],
    sizes: tuple[int, int],
    params: AttentionParams,
    block_size: int,
    num_threads: int,
) -> None:
    generator = torch.Generator().manual_seed(0)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator)

    num_heads, num_kv_heads = heads
    key_size, value_size = sizes
    # Decodes, a whole prompt, a chunk with a past that ends within a block, and one token.
    layout = make_layout([(70, 71), (0, 37), (33, 60), (0, 1), (15, 16)], block_size)
    num_tokens = len(layout.slot_mapping)
    shape = LayerShape(num_kv_heads=num_kv_heads, key_size=key_size, value_size=value_size)
    cache = make_cache(shape, block_size)
    exact_cache = dataclasses.replace(cache, blocks=cache.blocks.double())
    query = draw(num_tokens, num_heads, key_size)
    key = draw(num_tokens, num_kv_heads, key_size)
    value = draw(num_tokens, num_kv_heads, value_size)

    output = CpuAttention(CoreThreads(num_threads))(query, key, value, cache, layout, params)
    exact = torch_attention(
        query.double(), key.double(), value.double(), exact_cache, layout, params
    )

    # A score's rounding error grows with the score, and becomes a relative error of its weight.
    tolerance = 2e-6 * max(1.0, params.scaling)
    torch.testing.assert_close(output.double(), exact, rtol=2e-5, atol=tolerance)
    torch.testing.assert_close(cache.keys.double(), exact_cache.keys)
    torch.testing.assert_close(cache.values.double(), exact_cache.values)


def test_a_row_is_the_same_to_the_bit_whatever_runs_beside_it() -> None:
    torch.manual_seed(0)
    params = AttentionParams(scaling=0.3)
    layout = make_layout([(70, 71), (20, 45)], 16)
    alone = dataclasses.replace(
        layout,
        slot_mapping=layout.slot_mapping[:1],
        query_start_loc=layout.query_start_loc[:2],
        seq_lens=layout.seq_lens[:1],
        block_tables=layout.block_tables[:1],
        tasks=layout.tasks[:1],
    )
    cache = make_cache(LayerShape(num_kv_heads=2, key_size=16, value_size=16), 16)
    query, key, value = torch.randn(26, 4, 16), torch.randn(26, 2, 16), torch.randn(26, 2, 16)

    together = CpuAttention(CoreThreads(2))(query, key, value, cache, layout, params)
    single = CpuAttention(CoreThreads(1))(query[:1], key[:1], value[:1], cache, alone, params)

    assert torch.equal(together[:1], single)
