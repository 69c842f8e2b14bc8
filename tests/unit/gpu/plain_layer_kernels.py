"""What `LayerKernels` do, in plain torch: swaps of modules are tested with them, for they are fast.

The kernels themselves are tested in `test_layer_triton`.
"""

from __future__ import annotations

from collections import Counter

import torch
from torch.nn import functional

from furiosa_llm.modeling.gpu.layer_kernels import GateKind
from furiosa_llm.modeling.gpu.token_cache import TokenCache


class PlainLayerKernels:
    """Counts its calls by name."""

    def __init__(self) -> None:
        self.calls: Counter[str] = Counter()

    def normalize(
        self,
        inputs: torch.Tensor,
        weight: torch.Tensor,
        epsilon: float,
        *,
        adds_one: bool,
        rounds_first: bool,
    ) -> torch.Tensor | None:
        self.calls["normalize"] += 1
        if inputs.dtype != weight.dtype:
            return None
        rows = inputs.float()
        rows = rows * torch.rsqrt(rows.square().mean(-1, keepdim=True) + epsilon)
        if rounds_first:
            rows = rows.to(inputs.dtype).float()
        return (rows * (weight.float() + adds_one)).to(inputs.dtype)

    def gate(self, product: torch.Tensor, kind: GateKind) -> torch.Tensor | None:
        self.calls["gate"] += 1
        gate, up = product.chunk(2, dim=-1)
        if kind == "silu":
            return functional.silu(gate) * up
        return functional.gelu(gate, approximate="tanh" if kind == "gelu_tanh" else "none") * up

    def rotate(
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        cos: torch.Tensor,
        sin: torch.Tensor,
        *,
        halves: bool,
    ) -> tuple[torch.Tensor, torch.Tensor] | None:
        self.calls["rotate"] += 1
        if halves:
            cos, sin = (torch.cat([part, part], -1) for part in (cos, sin))
        if cos.shape[-1] > query.shape[-1]:
            return None
        return _rotated(query, cos, sin), _rotated(key, cos, sin)

    def store(
        self, cache: TokenCache, slot_mapping: torch.Tensor, key: torch.Tensor, value: torch.Tensor
    ) -> bool:
        self.calls["store"] += 1
        cache.store(slot_mapping, key, value)
        return True


def _rotated(heads: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """[1, H, T, D], with cosines [1, T, N] for the first N numbers of a head."""
    size = cos.shape[-1]
    turned, rest = heads[..., :size].float(), heads[..., size:]
    first, second = turned.chunk(2, -1)
    turned = turned * cos[:, None] + torch.cat([-second, first], -1) * sin[:, None]
    rotated = torch.cat([turned.to(heads.dtype), rest], -1)
    return rotated.transpose(1, 2).contiguous().transpose(1, 2)
