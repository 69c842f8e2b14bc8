"""The compiled kernel against plain torch in float64, for every variant that models ask for."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from furiosa_llm.execution.block_tables import BlockTables
from furiosa_llm.execution.input_batch import InputBatch
from furiosa_llm.modeling.attention_params import AttentionParams
from furiosa_llm.modeling.cpu import attention_kernel
from furiosa_llm.modeling.cpu.attention import CpuAttention
from furiosa_llm.modeling.cpu.cache_cells import pair_start
from furiosa_llm.modeling.cpu.core_threads import CoreThreads
from furiosa_llm.modeling.cpu.layer_cache import LayerCache
from furiosa_llm.modeling.layer_shape import LayerShape
from furiosa_llm.modeling.step_layout import StepLayout
from furiosa_llm.scheduler_output import NO_COUNTS, ScheduledRequest, SchedulerOutput
from tests.attention_reference import ATTENTION_VARIANTS, torch_attention

NUM_BLOCKS = 40
# Decodes, a whole prompt, a chunk with a past that ends within a block, and one token.
SPANS = [(70, 71), (0, 37), (33, 60), (0, 1), (15, 16)]

each_kind_of_attention = pytest.mark.parametrize(
    ("heads", "sizes", "params"),
    [
        *ATTENTION_VARIANTS,
        pytest.param((3, 3), (18, 18), AttentionParams(scaling=0.3), id="size not a multiple of 4"),
        pytest.param((2, 2), (16, 16), AttentionParams(scaling=8.0), id="large scores"),
    ],
)


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
@each_kind_of_attention
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
    layout = make_layout(SPANS, block_size)
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


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_row_is_the_same_to_the_bit_whatever_runs_beside_it(dtype: torch.dtype) -> None:
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
    if dtype == torch.bfloat16:
        cache = stored_in_pairs(cache, layout)
    query, key, value = torch.randn(26, 4, 16), torch.randn(26, 2, 16), torch.randn(26, 2, 16)

    together = CpuAttention(CoreThreads(2))(query, key, value, cache, layout, params)
    single = CpuAttention(CoreThreads(1))(query[:1], key[:1], value[:1], cache, alone, params)

    assert torch.equal(together[:1], single)


def past_slots(layout: StepLayout, block_size: int) -> torch.Tensor:
    """The slots of the tokens that the requests had before the step."""
    slots = []
    starts = layout.query_start_loc.tolist()
    for index, seq_len in enumerate(layout.seq_lens.tolist()):
        positions = torch.arange(seq_len - (starts[index + 1] - starts[index]))
        blocks = layout.block_tables[index, positions // block_size]
        slots.append(blocks * block_size + positions % block_size)
    return torch.cat(slots)


def rounded(numbers: torch.Tensor) -> torch.Tensor:
    """The nearest numbers of 16 bits."""
    return numbers.bfloat16().to(numbers.dtype)


def stored_in_pairs(cache: LayerCache, layout: StepLayout) -> LayerCache:
    """The past of a step in pairs, from a cache of floats; what nobody wrote is no number."""
    pairs = LayerCache.allocate(
        cache.shape, num_blocks=NUM_BLOCKS, block_size=cache.block_size, dtype=torch.bfloat16
    )
    pairs.blocks.fill_(0x7FC07FC0)
    for slot in past_slots(layout, cache.block_size).tolist():
        block, offset = divmod(slot, cache.block_size)
        attention_kernel.store_tokens(
            pairs.blocks.numpy(),
            cache.block_size,
            torch.tensor([slot]).numpy(),
            cache.keys[block, None, ..., offset].contiguous().numpy(),
            cache.values[block, None, :, offset].contiguous().numpy(),
        )
    return pairs


def taken_apart(cache: LayerCache) -> LayerCache:
    """A cache of pairs as one of floats."""
    floats = LayerCache.allocate(cache.shape, num_blocks=NUM_BLOCKS, block_size=cache.block_size)
    num_pairs = cache.shape.key_size * cache.block_size // 2
    numbers = cache.blocks.view(torch.bfloat16).view(*cache.blocks.shape, 2)
    parts = NUM_BLOCKS, cache.shape.num_kv_heads
    keys = numbers[:, :, :num_pairs].reshape(*parts, -1, cache.block_size, 2)
    floats.keys.copy_(keys.transpose(3, 4).flatten(2, 3))
    values = numbers[:, :, num_pairs:].reshape(*parts, cache.block_size // 2, -1, 2)
    floats.values.copy_(values.transpose(3, 4).flatten(2, 3)[..., : cache.shape.value_size])
    return floats


@pytest.mark.parametrize("block_size", [16, 64])
@each_kind_of_attention
def test_pairs_give_what_numbers_of_16_bits_do(
    heads: tuple[int, int], sizes: tuple[int, int], params: AttentionParams, block_size: int
) -> None:
    generator = torch.Generator().manual_seed(0)
    layout = make_layout(SPANS, block_size)
    num_tokens = len(layout.slot_mapping)
    shape = LayerShape(num_kv_heads=heads[1], key_size=sizes[0], value_size=sizes[1])
    floats = make_cache(shape, block_size)
    pairs = stored_in_pairs(floats, layout)
    exact_cache = dataclasses.replace(floats, blocks=rounded(floats.blocks).double())
    # Of a size that leaves scores small, so that their rounding is.
    query = rounded(torch.randn(num_tokens, heads[0], sizes[0], generator=generator))
    query = query / params.scaling / 8
    key, value = (torch.randn(num_tokens, heads[1], size, generator=generator) for size in sizes)

    output = CpuAttention(CoreThreads(1))(query, key, value, pairs, layout, params)
    exact = torch_attention(
        query.double(), rounded(key).double(), rounded(value).double(), exact_cache, layout, params
    )

    torch.testing.assert_close(output.double(), exact, rtol=1e-2, atol=1e-2)
    slots = torch.cat([layout.slot_mapping, past_slots(layout, block_size)])
    blocks, offsets = slots // block_size, slots % block_size
    stored = taken_apart(pairs)
    assert torch.equal(
        stored.keys[blocks, :, :, offsets].double(), exact_cache.keys[blocks, :, :, offsets]
    )
    assert torch.equal(
        stored.values[blocks, :, offsets].double(), exact_cache.values[blocks, :, offsets]
    )


def test_numbers_are_rounded_to_the_nearest_of_16_bits() -> None:
    special = [0.0, -0.0, 1.0, 1.00390625, 1.01171875, -3e38, 3.4e38, torch.inf, -torch.inf]
    numbers = torch.cat([torch.tensor(special), torch.randn(55) * 1e-3])
    shape = LayerShape(num_kv_heads=1, key_size=64, value_size=64)
    cache = LayerCache.allocate(shape, num_blocks=NUM_BLOCKS, block_size=16, dtype=torch.bfloat16)
    no_numbers = torch.full((64,), 0x7FFFFFFF, dtype=torch.int32).view(torch.float32)
    rows = torch.stack([numbers, no_numbers])[:, None]

    attention_kernel.store_tokens(
        cache.blocks.numpy(), 16, torch.tensor([2, 3]).numpy(), rows.numpy(), rows.numpy()
    )

    stored = taken_apart(cache)
    expected = numbers.bfloat16().float()
    assert torch.equal(stored.keys[0, 0, :, 2], expected)
    assert torch.equal(stored.values[0, 0, 2], expected)
    assert stored.keys[0, 0, :, 3].isnan().all()
    assert stored.values[0, 0, 3].isnan().all()


@given(
    slots=st.lists(st.integers(0, 63), min_size=1, max_size=20, unique=True),
    token=st.integers(0, 20),
)
def test_threads_never_share_a_pair(slots: list[int], token: int) -> None:
    runs = torch.tensor([slot + step for slot in slots for step in range(3)])
    token = min(token, len(runs))

    start = pair_start(runs.numpy(), token)

    assert token <= start <= token + 1
    if 0 < start < len(runs) and runs[start] == runs[start - 1] + 1:
        assert runs[start] % 2 == 0
