"""Splits a model's weights over tensor-parallel ranks, as the plan of its architecture says.

transformers names, for each architecture, how every projection is to be split (`tp_plan`). Only the
plan is taken from there: what it says is applied to a loaded model, so that the ranks may be any
group of processes, the weights stay plain tensors, and a rule that is not known is refused.
"""

from __future__ import annotations

import re

import torch
from torch import nn
from transformers import PreTrainedModel

from furiosa_llm.errors import ConfigError
from furiosa_llm.modeling.tensor_linear import (
    GatheredLinear,
    SummedLinear,
    TensorGroup,
    bias_of,
    make_linear,
    share_of,
)

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
# GPT-OSS, of which transformers has no plan: the gates and ups of an expert take turns, its weights
# are transposed, and it has biases.
_OWN_PLANS = {
    "gpt_oss": {
        "model.layers.*.self_attn.q_proj": "colwise",
        "model.layers.*.self_attn.k_proj": "colwise",
        "model.layers.*.self_attn.v_proj": "colwise",
        "model.layers.*.self_attn.o_proj": "rowwise",
        "model.layers.*.self_attn.sinks": "last_dim",
        "model.layers.*.mlp.experts": "moe_tp_experts",
        "model.layers.*.mlp.experts.gate_up_proj": "last_dim",
        "model.layers.*.mlp.experts.gate_up_proj_bias": "last_dim",
        "model.layers.*.mlp.experts.down_proj": "middle_dim",
        "model.layers.*.mlp.experts.down_proj_bias": "first_rank",
    }
}
_HEAD_PROJECTIONS = frozenset({"q_proj", "k_proj", "v_proj", "qkv_proj", "query_key_value"})


def split_weights(model: PreTrainedModel, group: TensorGroup) -> None:
    """Keeps this rank's share of the weights of every projection that the plan names.

    Raises:
        ConfigError: The architecture cannot be split, or not over this number of ranks.
    """
    plan = _find_plan(model)
    if not any("*" in pattern for pattern in plan):
        raise ConfigError(
            f"{type(model).__name__} has no plan for splitting its layers over {group.size} "
            "tensor-parallel ranks; use a tensor-parallel size of 1"
        )
    _check_heads(model, plan, group)
    splitter = _Splitter(model, plan, group)
    for path, module in list(model.named_modules()):
        style = plan.get(_pattern(path))
        if style is not None and style not in _KEPT_WHOLE:
            splitter.split_module(path, module, style)
        for parameter_name, _ in list(module.named_parameters(recurse=False)):
            style = plan.get(_pattern(f"{path}.{parameter_name}"))
            if style is not None and style not in _KEPT_WHOLE:
                splitter.split_parameter(path, module, parameter_name, style)


class _Splitter:
    """Applies the rules of a plan to one model."""

    def __init__(self, model: PreTrainedModel, plan: dict[str, str], group: TensorGroup) -> None:
        self._model = model
        self._plan = plan
        self._group = group
        self._embedding_weight = getattr(model.get_input_embeddings(), "weight", None)

    def split_module(self, path: str, module: nn.Module, style: str) -> None:
        """Puts this rank's share of a module in its place."""
        if style == "moe_tp_experts":
            self._sum_experts(path, module, style)
            return
        if isinstance(module, nn.Identity):
            return  # the output embedding, on a stage that has none
        if not isinstance(module, nn.Linear):
            raise self._refusal(path, style)
        match style:
            case "colwise":
                bias = bias_of(module)
                split: nn.Module = make_linear(
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

    def split_parameter(self, path: str, module: nn.Module, name: str, style: str) -> None:
        """Puts this rank's share of a parameter in its place."""
        parameter = module.get_parameter(name)
        match style:
            case "packed_colwise" if _holds_plain_experts(module):
                halves = parameter.data.chunk(2, dim=1)  # gates, then ups
                share = torch.cat([self._share(path, half, dim=1) for half in halves], dim=1)
            case "rowwise" if _holds_plain_experts(module):
                share = self._share(path, parameter, dim=2)
            case "last_dim":
                share = self._share(path, parameter, dim=-1)
            case "middle_dim":
                share = self._share(path, parameter, dim=1)
            case "first_rank":  # so that the sum over the ranks has it once
                share = parameter.data * (self._group.rank == 0)
            case _:
                raise self._refusal(f"{path}.{name}", style)
        setattr(module, name, nn.Parameter(share, requires_grad=False))

    def _share(self, path: str, tensor: torch.Tensor, *, dim: int) -> torch.Tensor:
        self._check_divides(path, tensor.shape[dim])
        return share_of(tensor, self._group, dim=dim)

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

    def _sum_experts(self, path: str, module: nn.Module, style: str) -> None:
        """Sums up what the ranks' shares of the experts give: all of them have to be shares."""
        names = [name for name, _ in module.named_parameters(recurse=False)]
        if not names or any(f"{_pattern(path)}.{name}" not in self._plan for name in names):
            raise self._refusal(path, style)
        module.register_forward_hook(self._sum_output)

    def _sum_output(self, _: nn.Module, __: object, output: torch.Tensor) -> torch.Tensor:
        return self._group.sum(output)


def _find_plan(model: PreTrainedModel) -> dict[str, str]:
    plan: dict[str, str] = dict(model.tp_plan or {})
    if not any("*" in pattern for pattern in plan):
        plan |= _OWN_PLANS.get(model.config.model_type, {})
    return plan


def _holds_plain_experts(module: nn.Module) -> bool:
    """Whether the weights of X experts lie in tensors [X, O, I], without a bias."""
    return (
        not getattr(module, "is_transposed", False)
        and not getattr(module, "has_bias", False)
        and getattr(module, "is_concatenated", True)
        and all(parameter.ndim == 3 for parameter in module.parameters(recurse=False))
    )


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
