"""The kernels between products, run by Triton's interpreter on a CPU, against float64.

The interpreter cuts bfloat16 numbers off where a GPU rounds them.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch.nn import functional

pytest.importorskip("triton")  # torch's builds for CPUs come without it

from furiosa_llm.modeling.gpu.layer_kernels import GateKind
from furiosa_llm.modeling.gpu.layer_triton import TritonLayerKernels
from furiosa_llm.modeling.gpu.token_cache import TokenCache
from tests.unit.gpu.triton_interpreter import skip_without_interpreter

KERNELS = TritonLayerKernels()
DTYPES = (torch.bfloat16, torch.float16, torch.float32)
ROUNDINGS = {torch.bfloat16: 2**-7, torch.float16: 2**-11, torch.float32: 2**-22}
FEW = settings(max_examples=12)
Activation = Callable[[torch.Tensor], torch.Tensor]


@pytest.fixture(scope="module", autouse=True)
def _interpreter() -> None:
    skip_without_interpreter()


def draw(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator).to(dtype)


def laid_out(tensor: torch.Tensor, layout: str) -> torch.Tensor:
    """The same numbers [A, B, C, D], where they lie as a model may have them."""
    if layout == "transposed":
        return tensor.transpose(1, 2).contiguous().transpose(1, 2)
    if layout == "part":  # of one product for several
        wide = tensor.new_zeros(
            *tensor.shape[:1], tensor.shape[2], tensor.shape[1] + 3, tensor.shape[3]
        )
        part = wide[:, :, 1 : 1 + tensor.shape[1]].transpose(1, 2)
        return part.copy_(tensor)
    if layout == "columns":
        return tensor.transpose(2, 3).contiguous().transpose(2, 3)
    return tensor


def assert_rounded(actual: torch.Tensor, exact: torch.Tensor, *, roundings: int = 1) -> None:
    """Numbers are those of float64, rounded so often to their type."""
    tolerance = ROUNDINGS[actual.dtype] * roundings
    torch.testing.assert_close(actual.double(), exact, rtol=tolerance, atol=tolerance / 100)


@FEW
@example(shape=(1, 1, 1, 1), dtype=torch.float32, layout="plain", form=(False, True))
@example(shape=(2, 3, 2, 5), dtype=torch.float32, layout="part", form=(True, False))
@given(
    shape=st.tuples(*(st.integers(1, 3) for _ in range(3)), st.integers(1, 130)),
    dtype=st.sampled_from(DTYPES),
    layout=st.sampled_from(["plain", "transposed", "part", "columns"]),
    form=st.tuples(st.booleans(), st.booleans()),
)
def test_rows_of_any_strides_are_normalised(
    shape: tuple[int, ...], dtype: torch.dtype, layout: str, form: tuple[bool, bool]
) -> None:
    adds_one, rounds_first = form
    inputs = laid_out(draw(*shape, dtype=dtype), layout)
    weight = draw(shape[-1], dtype=dtype, seed=1)

    actual = KERNELS.normalize(inputs, weight, 1e-3, adds_one=adds_one, rounds_first=rounds_first)

    exact = inputs.double() * (inputs.double().square().mean(-1, keepdim=True) + 1e-3).rsqrt()
    assert actual is not None
    assert actual.dtype == dtype
    assert_rounded(actual, exact * (weight.double() + adds_one), roundings=1 + rounds_first)


@pytest.mark.parametrize("rounds_first", [True, False])
def test_norms_round_where_transformers_does(rounds_first: bool) -> None:
    dtype = torch.float16
    inputs, weight = draw(4, 96, dtype=dtype), draw(96, dtype=dtype, seed=1)

    actual = KERNELS.normalize(inputs, weight, 1e-6, adds_one=False, rounds_first=rounds_first)

    rows = inputs.float()
    rows = rows * torch.rsqrt(rows.square().mean(-1, keepdim=True) + 1e-6)
    expected = rows.to(dtype) * weight if rounds_first else (rows * weight.float()).to(dtype)
    assert actual is not None
    assert (actual == expected).float().mean() > 0.99  # sums are in another order


def test_a_norm_of_another_type_or_size_is_not_served() -> None:
    def serves(inputs: torch.Tensor, weight: torch.Tensor) -> bool:
        form = {"adds_one": False, "rounds_first": True}
        return KERNELS.normalize(inputs, weight, 1e-6, **form) is not None

    assert serves(draw(2, 8), draw(8))
    assert not serves(draw(2, 8, dtype=torch.bfloat16), draw(8))
    assert not serves(draw(2, 8).double(), draw(8).double())
    assert not serves(draw(2, 8), draw(4))
    assert not serves(draw(1, 40_000), draw(40_000))


@pytest.mark.filterwarnings("ignore:overflow encountered in exp")
@FEW
@given(
    shape=st.tuples(st.integers(1, 2), st.integers(1, 2)),
    size=st.sampled_from([1, 7, 64, 1025]),
    dtype=st.sampled_from(DTYPES),
    gate=st.sampled_from(
        [
            ("silu", functional.silu),
            ("gelu", functional.gelu),
            ("gelu_tanh", lambda numbers: functional.gelu(numbers, approximate="tanh")),
        ]
    ),
)
def test_products_are_gated(
    shape: tuple[int, int], size: int, dtype: torch.dtype, gate: tuple[GateKind, Activation]
) -> None:
    kind, activation = gate
    product = draw(*shape, 2 * size, dtype=dtype) * 3

    actual = KERNELS.gate(product, kind)

    gates, up = product.double().chunk(2, -1)
    assert actual is not None
    assert actual.shape == (*shape, size)
    torch.testing.assert_close(
        actual.double(), activation(gates) * up, rtol=2 * ROUNDINGS[dtype], atol=2e-6
    )


@pytest.mark.filterwarnings("ignore:overflow encountered in exp")
@pytest.mark.parametrize("kind", ["silu", "gelu", "gelu_tanh"])
def test_large_gates_are_no_trouble(kind: GateKind) -> None:
    product = torch.tensor([[-200.0, -30.0, 0.0, 30.0, 1.0, 1.0, 1.0, 1.0]])

    actual = KERNELS.gate(product, kind)

    assert actual is not None
    torch.testing.assert_close(actual, torch.tensor([[0.0, 0.0, 0.0, 30.0]]), rtol=1e-6, atol=1e-6)


def rotated(
    heads: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, *, halves: bool
) -> torch.Tensor:
    """[1, H, T, D] in float64, number by number."""
    output = heads.double().clone()
    half = cos.shape[-1] // (1 if halves else 2)
    second = 0 if halves else half
    for index in range(half):
        x1, x2 = heads[..., index].double(), heads[..., half + index].double()
        output[..., index] = x1 * cos[..., index] - x2 * sin[..., index]
        output[..., half + index] = x2 * cos[..., second + index] + x1 * sin[..., second + index]
    return output


@FEW
@example(heads=(1, 1), tokens=1, size=2, half=1, dtype=torch.float32, layout="plain", halves=True)
@example(
    heads=(40, 8), tokens=1, size=64, half=32, dtype=torch.bfloat16, layout="part", halves=False
)
@given(
    heads=st.tuples(st.integers(1, 9), st.integers(1, 3)),
    tokens=st.integers(1, 3),
    size=st.integers(2, 80),
    half=st.integers(1, 40),
    dtype=st.sampled_from(DTYPES),
    layout=st.sampled_from(["plain", "transposed", "part"]),
    halves=st.booleans(),
)
def test_queries_and_keys_are_rotated(
    heads: tuple[int, int],
    tokens: int,
    size: int,
    half: int,
    dtype: torch.dtype,
    layout: str,
    halves: bool,
) -> None:
    half = min(half, size // 2)
    query, key = (
        laid_out(draw(1, number, tokens, size, dtype=dtype, seed=number), layout)
        for number in heads
    )
    cos, sin = draw(2, 1, tokens, half if halves else 2 * half, seed=100)

    actual = KERNELS.rotate(query, key, cos, sin, halves=halves)

    assert actual is not None
    for own, inputs in zip(actual, (query, key), strict=True):
        assert own.dtype == dtype
        assert own.transpose(1, 2).is_contiguous()
        exact = rotated(inputs, cos, sin, halves=halves)
        torch.testing.assert_close(own.double(), exact, rtol=ROUNDINGS[dtype], atol=1e-6)


def test_other_rotations_are_not_served() -> None:
    query, key, cos = draw(1, 4, 3, 8), draw(1, 2, 3, 8), draw(1, 3, 8)

    for kwargs in (
        {"query": draw(2, 4, 3, 8)},
        {"key": draw(1, 2, 3, 6)},
        {"key": key.bfloat16()},
        {"cos": draw(1, 4, 8)},
        {"cos": draw(1, 3, 10), "sin": draw(1, 3, 10)},
        {"cos": draw(3, 8), "sin": draw(3, 8)},
        {"query": draw(1, 4, 8, 3).transpose(2, 3)},
    ):
        given_ = {"query": query, "key": key, "cos": cos, "sin": cos} | kwargs
        assert KERNELS.rotate(**given_, halves=False) is None, {
            name: tensor.shape for name, tensor in kwargs.items()
        }


@FEW
@given(
    num_tokens=st.integers(1, 4),
    num_heads=st.integers(1, 5),
    sizes=st.tuples(st.integers(1, 40), st.integers(1, 40)),
    dtype=st.sampled_from(DTYPES),
    is_part=st.booleans(),
)
@example(num_tokens=2, num_heads=9, sizes=(128, 256), dtype=torch.bfloat16, is_part=True)
def test_keys_and_values_are_stored(
    num_tokens: int, num_heads: int, sizes: tuple[int, int], dtype: torch.dtype, is_part: bool
) -> None:
    expected, cache = (
        TokenCache(
            keys=draw(3, 2, num_heads, sizes[0], dtype=dtype),
            values=draw(3, 2, num_heads, sizes[1], dtype=dtype),
        )
        for _ in range(2)
    )
    key, value = (
        draw(num_tokens, num_heads, size + is_part, dtype=dtype, seed=1)[..., :size]
        for size in sizes
    )
    slots = torch.tensor([5, 0, 2, 3])[:num_tokens]

    assert KERNELS.store(cache, slots, key, value)

    expected.store(slots, key, value)
    assert torch.equal(cache.keys, expected.keys)
    assert torch.equal(cache.values, expected.values)


def test_keys_of_another_type_are_not_stored() -> None:
    cache = TokenCache(keys=draw(1, 2, 1, 4), values=draw(1, 2, 1, 4))
    before = cache.keys.clone()
    key = draw(1, 1, 4, dtype=torch.bfloat16, seed=1)

    assert not KERNELS.store(cache, torch.tensor([0]), key, key)
    assert torch.equal(cache.keys, before)
