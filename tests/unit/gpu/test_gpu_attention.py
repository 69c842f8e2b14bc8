"""Attention for a GPU, on a CPU, against plain torch in float64."""

from __future__ import annotations

import dataclasses
import itertools
import logging
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.attention import varlen

from furiosa_llm.modeling.attention_params import AttentionParams
from furiosa_llm.modeling.cpu.layer_cache import LayerCache
from furiosa_llm.modeling.gpu import attention_gathered
from furiosa_llm.modeling.gpu.attention import GpuAttention, PagedKernel
from furiosa_llm.modeling.gpu.attention_gathered import attend_gathered
from furiosa_llm.modeling.gpu.attention_varlen import VarlenAttention
from furiosa_llm.modeling.gpu.token_cache import TokenCache, token_bytes
from furiosa_llm.modeling.layer_shape import LayerShape
from furiosa_llm.modeling.step_layout import StepLayout, make_layout
from tests.attention_reference import ATTENTION_VARIANTS, torch_attention

CPU = torch.device("cpu")
DECODES = [(70, 71), (0, 1), (15, 16), (32, 33), (99, 100)]
PREFILLS = [(0, 37), (0, 16), (0, 1)]
CHUNKS = [(33, 60), (16, 48), (1, 90)]
MIXED = [*DECODES[:2], *PREFILLS[:1], *CHUNKS, *DECODES[2:]]
VARIANTS = [
    *ATTENTION_VARIANTS,
    pytest.param(
        (4, 2),
        (16, 16),
        AttentionParams(scaling=0.3, sliding_window=5, sinks=torch.tensor([0.5, -1.0, 3.0, 0.0])),
        id="window and sinks",
    ),
]


@dataclasses.dataclass(frozen=True)
class Problem:
    """Queries, and the keys and values that a step stores, of random numbers."""

    layout: StepLayout
    query: torch.Tensor
    key: torch.Tensor
    value: torch.Tensor
    cache: TokenCache
    params: AttentionParams

    def exact(self) -> torch.Tensor:
        """What the slow reference says, request by request, in float64."""
        shape = LayerShape(
            num_kv_heads=self.key.shape[1],
            key_size=self.key.shape[2],
            value_size=self.value.shape[2],
        )
        cache = LayerCache.allocate(
            shape,
            num_blocks=len(self.cache.keys),
            block_size=self.cache.block_size,
        )
        cache = dataclasses.replace(cache, blocks=cache.blocks.double())
        cache.keys.copy_(self.cache.keys.permute(0, 2, 3, 1))
        cache.values.copy_(self.cache.values.transpose(1, 2))
        query, key, value = (part.double() for part in (self.query, self.key, self.value))
        return torch_attention(query, key, value, cache, self.layout, self.params)

    def attend(self, kernels: Sequence[PagedKernel] = ()) -> torch.Tensor:
        return GpuAttention(kernels)(
            self.query, self.key, self.value, self.cache, self.layout, self.params
        )


def make_problem(
    spans: Sequence[tuple[int, int]],
    *,
    heads: tuple[int, int] = (4, 2),
    sizes: tuple[int, int] = (16, 16),
    params: AttentionParams | None = None,
    block_size: int = 16,
    dtype: torch.dtype = torch.float32,
) -> Problem:
    generator = torch.Generator().manual_seed(0)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator).to(dtype)

    layout = make_layout(spans, block_size=block_size, device=CPU)
    num_tokens, num_blocks = len(layout.slot_mapping), int(layout.block_tables.max()) + 1
    return Problem(
        layout=layout,
        query=draw(num_tokens, heads[0], sizes[0]),
        key=draw(num_tokens, heads[1], sizes[0]),
        value=draw(num_tokens, heads[1], sizes[1]),
        cache=TokenCache(
            keys=draw(num_blocks, block_size, heads[1], sizes[0]),
            values=draw(num_blocks, block_size, heads[1], sizes[1]),
        ),
        params=params or AttentionParams(scaling=0.25),
    )


@pytest.mark.parametrize(("heads", "sizes", "params"), VARIANTS)
@pytest.mark.parametrize(
    "spans",
    [
        pytest.param(DECODES, id="decodes"),
        pytest.param(PREFILLS, id="prefills"),
        pytest.param(CHUNKS, id="chunks with a past"),
        pytest.param(MIXED, id="mixed"),
    ],
)
def test_gathered_attention_agrees_with_float64(
    spans: list[tuple[int, int]],
    heads: tuple[int, int],
    sizes: tuple[int, int],
    params: AttentionParams,
) -> None:
    problem = make_problem(spans, heads=heads, sizes=sizes, params=params)

    output = problem.attend()

    torch.testing.assert_close(output.double(), problem.exact(), rtol=2e-5, atol=2e-6)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_rounds_its_inputs_and_its_output_only(dtype: torch.dtype) -> None:
    problem = make_problem(MIXED, dtype=dtype)

    output = problem.attend()

    assert output.dtype == dtype
    torch.testing.assert_close(output, problem.exact().to(dtype), rtol=1e-2, atol=1e-3)


def test_few_tiles_at_once_say_the_same_as_many(monkeypatch: pytest.MonkeyPatch) -> None:
    problem = make_problem(MIXED)
    at_once = problem.attend()

    monkeypatch.setattr(attention_gathered, "_GATHERED_ELEMENTS", 1)

    torch.testing.assert_close(problem.attend(), at_once)


def test_what_others_left_in_a_block_does_not_matter_even_if_it_is_no_number() -> None:
    problem = make_problem(MIXED)
    expected = problem.attend()
    dirty = TokenCache(
        keys=torch.full_like(problem.cache.keys, float("nan")),
        values=torch.full_like(problem.cache.values, float("nan")),
    )
    for index, seq_len in enumerate(problem.layout.seq_lens.tolist()):
        for position in range(seq_len):
            block = problem.layout.block_tables[index, position // 16]
            for clean, soiled in (
                (problem.cache.keys, dirty.keys),
                (problem.cache.values, dirty.values),
            ):
                soiled[block, position % 16] = clean[block, position % 16]

    output = dataclasses.replace(problem, cache=dirty).attend()

    assert torch.equal(output, expected)


def test_the_host_never_waits_for_the_device() -> None:
    """Tensors without content raise where a value is asked for."""
    problem = make_problem(MIXED, params=AttentionParams(scaling=0.2, sliding_window=9))
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        tensors: dict[str, Any] = {
            field.name: mode.from_tensor(content)
            for field in dataclasses.fields(problem.layout)
            if isinstance(content := getattr(problem.layout, field.name), torch.Tensor)
        }
        layout = dataclasses.replace(problem.layout, **tensors)
        fake = TokenCache(
            keys=mode.from_tensor(problem.cache.keys),
            values=mode.from_tensor(problem.cache.values),
        )
        query, key, value = map(mode.from_tensor, (problem.query, problem.key, problem.value))
        output = GpuAttention([])(query, key, value, fake, layout, problem.params)

    assert output.shape == problem.query.shape


def test_a_token_takes_what_its_type_takes() -> None:
    shape = LayerShape(num_kv_heads=3, key_size=24, value_size=10)

    for dtype in (torch.bfloat16, torch.float32):
        cache = TokenCache.allocate(shape, num_blocks=2, block_size=16, dtype=dtype, device=CPU)
        taken = cache.keys.nbytes + cache.values.nbytes

        assert token_bytes(shape, dtype) * 2 * 16 == taken


class FakeVarlen:
    """Computes what torch's kernel is documented to, of the arguments that it is given."""

    def __init__(self) -> None:
        self.calls: list[dict[str, Any]] = []

    def __call__(
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        cu_seq_q: torch.Tensor,
        cu_seq_k: torch.Tensor | None,
        max_q: int,
        max_k: int,
        *,
        scale: float,
        window_size: tuple[int, int],
        enable_gqa: bool,
        seqused_k: torch.Tensor,
        block_table: torch.Tensor,
        num_splits: int | None = None,
    ) -> torch.Tensor:
        self.calls.append({"cu_seq_k": cu_seq_k, "max_q": max_q, "num_splits": num_splits})
        assert query.is_contiguous()
        assert cu_seq_q.dtype == seqused_k.dtype == block_table.dtype == torch.int32
        assert enable_gqa == (query.shape[1] != key.shape[2])
        output = torch.empty_like(query)
        for row, (start, stop) in enumerate(itertools.pairwise(cu_seq_q.tolist())):
            length = int(seqused_k[row])
            assert stop - start <= max_q
            assert length <= max_k
            keys, values = (part[block_table[row]].flatten(0, 1)[:length] for part in (key, value))
            attended = self._one(
                *(part.double() for part in (query[start:stop], keys, values)),
                scale=scale,
                window_size=window_size,
            )
            output[start:stop] = attended.to(query.dtype)
        return output

    @staticmethod
    def _one(
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        *,
        scale: float,
        window_size: tuple[int, int],
    ) -> torch.Tensor:
        group = query.shape[1] // key.shape[1]
        key, value = (part.repeat_interleave(group, dim=1) for part in (key, value))
        scores = torch.einsum("thd,shd->hts", query, key) * scale
        last = key.shape[0] - query.shape[0] + torch.arange(query.shape[0])
        offset = torch.arange(key.shape[0]) - last[:, None]  # of a key from a query
        left, right = window_size
        hidden = offset > right
        if left >= 0:
            hidden |= offset < -left
        weights = scores.masked_fill(hidden, float("-inf")).softmax(-1)
        return torch.einsum("hts,shd->thd", weights, value)


@pytest.mark.parametrize("version", [None, "FA3"])
@pytest.mark.parametrize("window", [None, 1, 20])
def test_torchs_kernel_is_given_what_it_needs(version: str | None, window: int | None) -> None:
    function = FakeVarlen()
    problem = make_problem(
        MIXED,
        params=AttentionParams(scaling=0.25, sliding_window=window),
        block_size=256,
        dtype=torch.bfloat16,
    )

    output = problem.attend([VarlenAttention(function, version=version)])

    decodes, mixed, call = function.calls  # none else: each kind of step was tried once
    assert decodes["max_q"] == 1
    assert mixed["max_q"] == 37
    assert call["max_q"] == 89
    if version is None:
        assert call["num_splits"] == 1
        assert call["cu_seq_k"].tolist() == [0, *problem.layout.seq_lens.cumsum(0).tolist()]
    else:
        assert call["num_splits"] is call["cu_seq_k"] is None
    torch.testing.assert_close(output, problem.exact().bfloat16(), rtol=1e-2, atol=1e-3)


@pytest.mark.parametrize(
    "changes",
    [
        pytest.param({"block_size": 32}, id="small blocks"),
        pytest.param({"dtype": torch.float32}, id="float32"),
        pytest.param({"sizes": (48, 24)}, id="smaller values"),
        pytest.param({"params": AttentionParams(scaling=0.2, softcap=2.0)}, id="soft cap"),
        pytest.param({"params": AttentionParams(scaling=0.2, sinks=torch.ones(4))}, id="sinks"),
    ],
)
def test_what_torchs_kernel_does_not_serve_is_computed_in_plain_torch(
    changes: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    function = FakeVarlen()
    options: dict[str, Any] = {"block_size": 256, "dtype": torch.bfloat16, **changes}
    problem = make_problem(MIXED, **options)

    with caplog.at_level(logging.WARNING):
        output = problem.attend([VarlenAttention(function, version=None)])

    assert not function.calls
    assert "no kernel serves it" in caplog.text
    torch.testing.assert_close(output, problem.exact().to(output.dtype), rtol=1e-2, atol=1e-3)


def _fails(*_: object, **__: object) -> torch.Tensor:
    raise RuntimeError("no kernel image is available")


def _is_wrong(query: torch.Tensor, *_: object, **__: object) -> torch.Tensor:
    return torch.zeros_like(query)


@pytest.mark.parametrize("function", [_fails, _is_wrong])
def test_a_kernel_that_fails_or_is_wrong_is_not_used(function: Callable[..., Any]) -> None:
    problem = make_problem(MIXED, block_size=256, dtype=torch.bfloat16)

    output = problem.attend([VarlenAttention(function, version=None)])

    expected = attend_gathered(problem.query, problem.cache, problem.layout, problem.params)
    assert torch.equal(output, expected)


def test_the_kernel_of_this_torch_is_found_by_what_it_takes() -> None:
    takes_blocks = "block_table" in varlen.varlen_attn.__annotations__

    assert (VarlenAttention.find() is not None) == takes_blocks
