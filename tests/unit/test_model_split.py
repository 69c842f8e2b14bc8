from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

from furiosa_llm.errors import ConfigError
from furiosa_llm.modeling.loader import LoadedModel, load_model
from furiosa_llm.modeling.model_split import ModelSplit, take_part
from furiosa_llm.modeling.pipeline_split import PipelineStage, layers_of_stage
from furiosa_llm.modeling.tensor_linear import GatheredLinear, SummedLinear
from furiosa_llm.modeling.tensor_split import split_weights


class Rank:
    """One of several ranks, of which the others say nothing."""

    def __init__(self, rank: int = 0, size: int = 1) -> None:
        self.rank = rank
        self.size = size

    def sum(self, tensor: torch.Tensor) -> torch.Tensor:
        return tensor

    def concatenate(self, tensor: torch.Tensor) -> torch.Tensor:
        return torch.cat([tensor, *[torch.zeros_like(tensor)] * (self.size - 1)], dim=-1)


def load(path: Path, *, stage: int = 0, pp: int = 1, rank: int = 0, tp: int = 1) -> LoadedModel:
    split = ModelSplit(pipeline_rank=stage, pipeline_parallel_size=pp, tensor_group=Rank(rank, tp))
    return load_model(str(path), dtype=torch.float32, split=split)


@pytest.mark.parametrize(
    ("num_layers", "num_stages", "sizes"),
    [(8, 2, [4, 4]), (7, 3, [3, 2, 2]), (3, 3, [1, 1, 1]), (5, 1, [5])],
)
def test_stages_differ_by_one_layer_at_most(
    num_layers: int, num_stages: int, sizes: list[int]
) -> None:
    stages = [
        layers_of_stage(num_layers, stage=stage, num_stages=num_stages)
        for stage in range(num_stages)
    ]

    assert [len(stage) for stage in stages] == sizes
    assert [layer for stage in stages for layer in stage] == list(range(num_layers))


@pytest.mark.parametrize(
    ("name", "pp", "tp", "reason"),
    [
        ("GPT2", 1, 2, "GPT2LMHeadModel has no plan for splitting its layers over 2"),
        ("GPT2", 2, 1, "GPT2LMHeadModel has no plan for cutting it into 2 pipeline stages"),
        ("Llama", 1, 3, "the tensor-parallel size (3) does not divide the 4 attention heads of"),
        ("Llama", 1, 4, "the tensor-parallel size (4) does not divide the 2 key-value heads of"),
        ("DeepseekV3", 1, 5, "the tensor-parallel size (5) does not divide the width 96 of"),
        ("Llama", 3, 1, "the pipeline-parallel size (3) exceeds the model's 2 layers"),
    ],
)
def test_a_model_that_cannot_be_split_so_is_refused(
    name: str, pp: int, tp: int, reason: str, checkpoint: Callable[[str], Path]
) -> None:
    with pytest.raises(ConfigError) as refusal:
        load(checkpoint(name), pp=pp, tp=tp)

    assert reason in str(refusal.value)


def test_a_rule_that_is_not_known_is_refused(checkpoint: Callable[[str], Path]) -> None:
    model = load(checkpoint("Llama")).model
    model.tp_plan = {"model.layers.*.input_layernorm": "sequence_parallel"}

    with pytest.raises(ConfigError, match="'sequence_parallel' for model"):
        split_weights(model, Rank(0, 2))


def test_experts_that_are_summed_but_not_split_are_refused(
    checkpoint: Callable[[str], Path],
) -> None:
    model = load(checkpoint("Qwen3Moe")).model
    del model.tp_plan["model.layers.*.mlp.experts.down_proj"]

    with pytest.raises(ConfigError, match="'moe_tp_experts' for model"):
        split_weights(model, Rank(0, 2))


def test_query_heads_that_are_split_alone_are_refused(checkpoint: Callable[[str], Path]) -> None:
    model = load(checkpoint("Llama")).model
    for name in ("k_proj", "v_proj"):
        del model.tp_plan[f"model.layers.*.self_attn.{name}"]
    split = ModelSplit(pipeline_rank=0, pipeline_parallel_size=1, tensor_group=Rank(0, 2))

    with pytest.raises(ConfigError, match="2 of 4 heads, but 2 of 2 key-value heads"):
        take_part(model, split, max_model_len=64)


def test_stages_share_the_weights_out(checkpoint: Callable[[str], Path]) -> None:
    path = checkpoint("Qwen3")
    whole = load(path)

    stages = [load(path, stage=stage, pp=2) for stage in range(2)]

    norm = 64  # the last norm lies on both stages
    assert sum(part.num_parameters for part in stages) == whole.num_parameters + norm
    assert [len(part.layers) for part in stages] == [1, 1]
    assert stages[0].info == stages[1].info == whole.info


def test_tensor_ranks_hold_half_of_each_projection_and_of_the_heads(
    checkpoint: Callable[[str], Path],
) -> None:
    whole, half = load(checkpoint("Qwen3")), load(checkpoint("Qwen3"), tp=2)

    shared = 300 * 64 + 2 * (2 * 64 + 2 * 16) + 64  # the embedding and the norms
    assert half.num_parameters - shared == (whole.num_parameters - shared) // 2
    assert {layer.shape.num_kv_heads for layer in half.layers} == {1}


def test_the_ranks_products_add_up_to_that_of_the_whole_layer() -> None:
    whole, inputs = nn.Linear(6, 4), torch.randn(3, 6)
    parts = [SummedLinear(whole, Rank(rank, 2), splits_input=True) for rank in range(2)]

    outputs = sum(part.linear(half) for part, half in zip(parts, inputs.chunk(2, -1), strict=True))

    assert torch.allclose(outputs + whole.bias, whole(inputs), atol=1e-6)
    assert torch.equal(parts[0](inputs), parts[0].linear(inputs[:, :3]) + whole.bias)


def test_an_odd_number_of_outputs_is_gathered_whole() -> None:
    whole, inputs = nn.Linear(6, 5), torch.randn(3, 6)
    parts = [GatheredLinear(whole, Rank(rank, 2), is_tied=False) for rank in range(2)]

    outputs = torch.cat([part.linear(inputs) for part in parts], dim=-1)

    assert torch.allclose(outputs[:, :5], whole(inputs), atol=1e-6)
    assert parts[0](inputs).shape == (3, 5)


class Layer(nn.Module):
    """A layer with habits of its own."""

    def __init__(self, *, returns_pair: bool = False) -> None:
        super().__init__()
        self.returns_pair = returns_pair

    def forward(self, hidden: torch.Tensor, extra: object = None) -> object:
        return (hidden, extra) if self.returns_pair else hidden


@pytest.mark.parametrize(
    ("layer", "extra", "reason"),
    [
        (Layer(returns_pair=True), None, "hands on more than one tensor"),
        (Layer(), [torch.zeros(1)], r"beside the hidden states \(extra\)"),
    ],
)
def test_layers_that_hand_on_more_than_hidden_states_are_refused(
    layer: Layer, extra: object, reason: str
) -> None:
    stage = PipelineStage(nn.ModuleList([layer, Layer()]), range(1))
    handles = stage.watch()

    with pytest.raises(ConfigError, match=reason):
        layer(torch.zeros(1, 1, 4), extra=extra)

    for handle in handles:
        handle.remove()
    layer(torch.zeros(1, 1, 4), extra=extra)  # no longer watched
