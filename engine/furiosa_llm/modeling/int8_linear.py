"""Linear layers with 8-bit weights and activations.

Weights are rounded once, with one scale for each output; activations as they come, with one scale
for each token (dynamic quantisation, as in LLM.int8(), Dettmers et al. 2022). The products are
summed in whole numbers, so that a row of the result is the same whatever runs beside it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn

from furiosa_llm.modeling import int8_kernels
from furiosa_llm.modeling.packed_linear import joined_bias, weight_of

_LARGEST_WEIGHT = 127


@dataclass(frozen=True, slots=True)
class QuantizedRows:
    """Activations as whole numbers: value x is about (number - zero point) * scale of its row."""

    numbers: torch.Tensor  # [*, I] uint8
    scales: torch.Tensor  # [*, 1]

    @classmethod
    def of(cls, inputs: torch.Tensor) -> QuantizedRows:
        """Rounds [*, I]."""
        rows = cls.empty(inputs.shape)
        size = inputs.shape[-1]
        int8_kernels.quantize(
            inputs.reshape(-1, size).numpy(),
            rows.numbers.view(-1, size).numpy(),
            rows.scales.view(-1).numpy(),
            _largest_number(),
        )
        return rows

    @classmethod
    def of_gated(cls, gate: torch.Tensor, up: torch.Tensor) -> QuantizedRows:
        """Rounds silu(gate) * up of [*, I] each."""
        rows = cls.empty(gate.shape)
        size = gate.shape[-1]
        int8_kernels.gate_and_quantize(
            gate.view(-1, size).numpy(),
            up.view(-1, size).numpy(),
            rows.numbers.view(-1, size).numpy(),
            rows.scales.view(-1).numpy(),
            _largest_number(),
        )
        return rows

    @classmethod
    def empty(cls, shape: Sequence[int]) -> QuantizedRows:
        """Reserves memory for [*, I]."""
        return cls(torch.empty(shape, dtype=torch.uint8), torch.empty(*shape[:-1], 1))


class Int8Linear(nn.Module):
    """y = x W^T + b, of rounded x and W."""

    def __init__(
        self, weights: Sequence[torch.Tensor], biases: Sequence[torch.Tensor | None]
    ) -> None:
        """Rounds and packs weights [O, I] one below the other; biases [O], or None."""
        super().__init__()
        weight = torch.cat(list(weights))
        self.out_features, self.in_features = weight.shape
        scales = weight.abs().amax(dim=1).clamp(min=torch.finfo(torch.float32).tiny)
        scales /= _LARGEST_WEIGHT
        self._weight_scales = scales
        self._weight_zeros = torch.zeros(self.out_features, dtype=torch.int32)
        numbers = (weight / scales[:, None]).round_().to(torch.int8)
        self._packed = torch.ops.onednn.qlinear_prepack(numbers, None)
        self._bias = joined_bias(weights, biases)

    @classmethod
    def of(cls, *linears: nn.Module) -> Int8Linear:
        """Packs layers that are given the same input into one, their outputs side by side."""
        return cls(
            [weight_of(linear) for linear in linears],
            [linear.bias for linear in linears],  # type: ignore[misc]
        )

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """[*, I] -> [*, O]."""
        if inputs.numel() == 0:  # no token of the step is sampled
            return inputs.new_empty(*inputs.shape[:-1], self.out_features)
        return self.multiply(QuantizedRows.of(inputs))

    def multiply(self, rows: QuantizedRows) -> torch.Tensor:
        """Takes activations that are rounded already. Returns [*, O]."""
        output: torch.Tensor = torch.ops.onednn.qlinear_pointwise(
            rows.numbers,
            1.0,  # each row has a scale of its own
            _largest_number() + 1,
            self._packed,
            self._weight_scales,
            self._weight_zeros,
            None,
            1.0,
            0,
            torch.float32,
            "none",
            [],
            "",
        )
        output *= rows.scales
        return output if self._bias is None else output.add_(self._bias)

    def extra_repr(self) -> str:
        """What `print(model)` shows of it."""
        return f"{self.in_features}, {self.out_features}"


class Int8GatedMlp(nn.Module):
    """down(silu(gate(x)) * up(x)); the input is rounded once, and so is what goes down."""

    def __init__(self, gate: Int8Linear, up: Int8Linear, down: Int8Linear) -> None:
        super().__init__()
        self.gate_proj, self.up_proj, self.down_proj = gate, up, down

    @classmethod
    def of(cls, module: nn.Module) -> Int8GatedMlp:
        """Takes over the three layers of a module that has such."""
        gate, up, down = (
            Int8Linear.of(module.get_submodule(f"{name}_proj")) for name in ("gate", "up", "down")
        )
        return cls(gate, up, down)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """[*, I] -> [*, I]."""
        rows = QuantizedRows.of(hidden_states)
        gate, up = self.gate_proj.multiply(rows), self.up_proj.multiply(rows)
        return self.down_proj.multiply(QuantizedRows.of_gated(gate, up))


def _largest_number() -> int:
    """Largest distance of an activation from the zero point.

    Processors without instructions for 8-bit products add two of them in 16 bits on the way.
    """
    return 127 if torch.cpu._is_vnni_supported() else 63
