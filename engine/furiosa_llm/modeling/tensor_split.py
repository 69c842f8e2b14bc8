"""Splits a model's weights over tensor-parallel ranks, as the plan of its architecture says.

transformers names, for each architecture, how every projection is to be split (`tp_plan`). Only the
plan is taken from there: what it says is applied to a loaded model, so that the ranks may be any
group of processes, the weights stay plain tensors, and a rule that is not known is refused.
"""

from __future__ import annotations

import re
from typing import Protocol

import torch
from torch import nn
from torch.nn.functional import pad
from transformers import PreTrainedModel

from furiosa_llm.errors import ConfigError

# Rules about gradients, and about embeddings, which every rank keeps whole: looking a token up
# costs nothing, and a sum over the ranks would.
_KEPT_WHOLE = frozenset(
    {
        "embedding_rowwise",
        "embedding_colwise",
        "local_params",
        "mla_kv_a_proj",
        "replicate",
        "replicated_with_grad_allreduce",
    }
)
_HEAD_PROJECTIONS = frozenset({"q_proj", "k_proj", "v_proj", "qkv_proj", "query_key_value"})


class TensorGroup(Protocol):
    """The ranks that hold one stage's weights together."""

    @property
    def rank(self) -> int:
        """The place of this rank in the group, from 0."""

    @property
    def size(self) -> int:
        """Ranks in the group."""

    def sum(self, tensor: torch.Tensor) -> torch.Tensor:
        """Returns the sum of the ranks' tensors, the same on every rank. May change `tensor`."""

    def concatenate(self, tensor: torch.Tensor) -> torch.Tensor:
        """Returns the tensors of all ranks, of one shape, side by side in the last dimension."""


class SummedLinear(nn.Module):
    """A linear layer whose inputs are split: the ranks' products are summed."""

    def __init__(self, whole: nn.Linear, group: TensorGroup, *, splits_input: bool) -> None:
        super().__init__()
        self._group = group
        self._splits_input = splits_input
        self.linear = _linear(_share(whole.weight, group, dim=1), None)
        self.bias = _bias(whole)

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        """Multiplies by this rank's columns. [.., I] or [.., I / ranks] -> [.., O]."""
        if self._splits_input:
            hidden = hidden.chunk(self._group.size, dim=-1)[self._group.rank]
        output = self._group.sum(self.linear(hidden))
        return output if self.bias is None else output + self.bias


class GatheredLinear(nn.Module):
    """A linear layer whose outputs are split, and put together again on every rank."""

    def __init__(self, whole: nn.Linear, group: TensorGroup, *, is_tied: bool) -> None:
        super().__init__()
        self._group = group
        self._num_outputs = whole.out_features
        num_rows = -(-self._num_outputs // group.size)
        rows = slice(group.rank * num_rows, (group.rank + 1) * num_rows)
        weight, bias = whole.weight.data[rows], _bias(whole)
        # Rows that the last rank lacks are zeros; they are cut off once the outputs are together.
        num_missing = num_rows - weight.shape[0]
        if bias is not None:
            bias = pad(bias.data[rows], (0, num_missing)).clone()
        if num_missing or not is_tied:  # else it stays a part of the embedding, at no cost
            weight = pad(weight, (0, 0, 0, num_missing)).clone()
        self.linear = _linear(weight, bias)

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        """Multiplies by this rank's rows and gathers. [.., I] -> [.., O]."""
        return self._group.concatenate(self.linear(hidden))[..., : self._num_outputs]


def split_weights(model: PreTrainedModel, group: TensorGroup) -> None:
    """Keeps this rank's share of the weights of every projection that the plan names.

    Raises:
        ConfigError: The architecture cannot be split, or not over this number of ranks.
    """
    name = type(model).__name__
    plan: dict[str, str] = dict(model.tp_plan or {})
    if not any("*" in pattern for pattern in plan):
        raise ConfigError(
            f"{name} has no plan for splitting its layers over {group.size} tensor-parallel ranks; "
            "use a tensor-parallel size of 1"
        )
    _check_heads(model, plan, group)
    splitter = _Splitter(model, group)
    for path, module in list(model.named_modules()):
        style = plan.get(_pattern(path))
        if style is not None and style not in _KEPT_WHOLE:
            splitter.split_module(path, module, style)
        for parameter_name, _ in list(module.named_parameters(recurse=False)):
            style = plan.get(_pattern(f"{path}.{parameter_name}"))
            if style is not None and style not in _KEPT_WHOLE:
                splitter.split_experts(path, module, parameter_name, style)


class _Splitter:
    """Applies the rules of a plan to one model."""

    def __init__(self, model: PreTrainedModel, group: TensorGroup) -> None:
        self._model = model
        self._group = group
        self._embedding_weight = getattr(model.get_input_embeddings(), "weight", None)

    def split_module(self, path: str, module: nn.Module, style: str) -> None:
        """Puts this rank's share of a module in its place."""
        if style == "moe_tp_experts":
            module.register_forward_hook(self._sum_output)
            return
        if isinstance(module, nn.Identity):
            return  # the output embedding, on a stage that has none
        if not isinstance(module, nn.Linear):
            raise self._refusal(path, style)
        match style:
            case "colwise":
                bias = _bias(module)
                split: nn.Module = _linear(
                    self._share(path, module.weight, dim=0),
                    None if bias is None else self._share(path, bias, dim=0),
                )
            case "rowwise" | "rowwise_split_input" | "rowwise_rep":
                self._check_divides(path, module.in_features)
                split = SummedLinear(module, self._group, splits_input=style != "rowwise")
            case "colwise_gather_output" | "colwise_rep":
                is_tied = module.weight is self._embedding_weight
                split = GatheredLinear(module, self._group, is_tied=is_tied)
            case _:
                raise self._refusal(path, style)
        self._model.set_submodule(path, split)

    def split_experts(self, path: str, module: nn.Module, name: str, style: str) -> None:
        """Keeps a share of every expert: [X, O, I], X experts in one tensor."""
        parameter = module.get_parameter(name)
        is_plain = not getattr(module, "is_transposed", False) and getattr(
            module, "is_concatenated", True
        )
        if parameter.ndim != 3 or not is_plain or getattr(module, "has_bias", False):
            raise self._refusal(f"{path}.{name}", style)
        match style:
            case "packed_colwise":  # gate and up projection, one after the other
                halves = [self._share(path, half, dim=1) for half in parameter.data.chunk(2, dim=1)]
                share = torch.cat(halves, dim=1)
            case "rowwise":
                share = self._share(path, parameter, dim=2)
            case _:
                raise self._refusal(f"{path}.{name}", style)
        setattr(module, name, nn.Parameter(share, requires_grad=False))

    def _share(self, path: str, tensor: torch.Tensor, *, dim: int) -> torch.Tensor:
        self._check_divides(path, tensor.shape[dim])
        return _share(tensor, self._group, dim=dim)

    def _check_divides(self, path: str, width: int) -> None:
        if width % self._group.size:
            raise ConfigError(
                f"the tensor-parallel size ({self._group.size}) does not divide the width {width} "
                f"of {path} in {type(self._model).__name__}"
            )

    def _refusal(self, path: str, style: str) -> ConfigError:
        return ConfigError(
            f"{type(self._model).__name__} cannot be split over {self._group.size} "
            f"tensor-parallel ranks: the rule {style!r} for {path} is not supported; use a "
            "tensor-parallel size of 1"
        )

    def _sum_output(self, _: nn.Module, __: object, output: torch.Tensor) -> torch.Tensor:
        return self._group.sum(output)


def _check_heads(model: PreTrainedModel, plan: dict[str, str], group: TensorGroup) -> None:
    if not any(
        style == "colwise" and pattern.rpartition(".")[2] in _HEAD_PROJECTIONS
        for pattern, style in plan.items()
    ):
        return  # every rank has all heads
    config = model.config.get_text_config()
    num_heads = config.num_attention_heads
    num_kv_heads = getattr(config, "num_key_value_heads", None) or num_heads
    for what, number in (("attention heads", num_heads), ("key-value heads", num_kv_heads)):
        if number % group.size:
            raise ConfigError(
                f"the tensor-parallel size ({group.size}) does not divide the {number} {what} of "
                f"{type(model).__name__}"
            )


def _pattern(path: str) -> str:
    """The name that a plan uses: layers and other numbers become stars."""
    return re.sub(r"\.\d+(?=\.|$)", ".*", path)


def _share(tensor: torch.Tensor, group: TensorGroup, *, dim: int) -> torch.Tensor:
    """Copies this rank's part, so that the whole tensor can be freed."""
    return tensor.data.chunk(group.size, dim=dim)[group.rank].clone(
        memory_format=torch.contiguous_format
    )


def _bias(linear: nn.Linear) -> torch.Tensor | None:
    return dict(linear.named_parameters(recurse=False)).get("bias")


def _linear(weight: torch.Tensor, bias: torch.Tensor | None) -> nn.Linear:
    num_outputs, num_inputs = weight.shape
    linear = nn.Linear(num_inputs, num_outputs, bias=bias is not None, device="meta")
    linear.weight = nn.Parameter(weight, requires_grad=False)
    if bias is not None:
        linear.bias = nn.Parameter(bias, requires_grad=False)
    return linear
