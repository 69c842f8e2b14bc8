"""Leaves one rank's part of a loaded model: its pipeline stage, its share of the weights."""

from __future__ import annotations

from dataclasses import dataclass

from transformers import PreTrainedModel

from furiosa_llm.errors import ConfigError, ModelLoadError
from furiosa_llm.modeling.attention_probe import find_attention_layers
from furiosa_llm.modeling.paged_attention import AttentionLayer
from furiosa_llm.modeling.pipeline_split import PipelineStage, keep_stage
from furiosa_llm.modeling.tensor_linear import TensorGroup
from furiosa_llm.modeling.tensor_split import split_weights


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelSplit:
    """Which part of a model a rank holds."""

    pipeline_rank: int
    pipeline_parallel_size: int
    tensor_group: TensorGroup


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelPart:
    """What is left of a model on a rank.

    Attributes:
        layers: Its attention layers, in the order in which they run.
        num_layers: The layers that it has; as many as `layers` where every one attends.
        stage: Its stage, where there are several.
    """

    layers: list[AttentionLayer]
    num_layers: int | None
    stage: PipelineStage | None


def take_part(model: PreTrainedModel, split: ModelSplit | None, *, max_model_len: int) -> ModelPart:
    """Cuts a model down to one rank's part, and finds the layers that attend.

    With several tensor-parallel ranks, all of them have to call this: they sum up what each has.

    Raises:
        ConfigError: The model cannot be split so.
        ModelLoadError: An attention module works in a way that blocks cannot serve.
    """
    num_layers = _num_layers(model)
    if split is None:
        return ModelPart(
            layers=find_attention_layers(model, max_model_len=max_model_len),
            num_layers=num_layers,
            stage=None,
        )
    stage = None
    if split.pipeline_parallel_size > 1:
        stage = keep_stage(
            model, stage=split.pipeline_rank, num_stages=split.pipeline_parallel_size
        )
        num_layers = stage.num_layers
    if split.tensor_group.size > 1:
        split_weights(model, split.tensor_group)
    layers = _find_layers_of_part(model, stage, split, max_model_len=max_model_len)
    for layer in layers:
        _check_heads(model, layer, split.tensor_group.size)
    return ModelPart(layers=layers, num_layers=num_layers, stage=stage)


def _num_layers(model: PreTrainedModel) -> int | None:
    config = model.config.get_text_config()
    return getattr(config, "decoder_layers", None) or getattr(config, "num_hidden_layers", None)


def _find_layers_of_part(
    model: PreTrainedModel,
    stage: PipelineStage | None,
    split: ModelSplit,
    *,
    max_model_len: int,
) -> list[AttentionLayer]:
    handles = [] if stage is None else stage.watch()
    # A stage that lacks the output embedding has no logits: only what is below is run.
    has_logits = stage is None or stage.is_last
    try:
        return find_attention_layers(
            model if has_logits else model.base_model,
            max_model_len=max_model_len,
            has_logits=has_logits,
        )
    except ModelLoadError as error:
        raise ConfigError(
            f"{type(model).__name__} cannot be split over {split.tensor_group.size} "
            f"tensor-parallel ranks and {split.pipeline_parallel_size} pipeline stages: {error}"
        ) from error
    finally:
        for handle in handles:
            handle.remove()


def _check_heads(model: PreTrainedModel, layer: AttentionLayer, num_ranks: int) -> None:
    """Refuses a plan that would let query heads read key-value heads that are not theirs."""
    config = model.config.get_text_config()
    num_heads: int = config.num_attention_heads
    num_kv_heads: int = getattr(config, "num_key_value_heads", None) or num_heads
    heads = (layer.num_heads, layer.shape.num_kv_heads)
    is_whole = heads == (num_heads, num_kv_heads)
    is_split = heads == (num_heads // num_ranks, num_kv_heads // num_ranks)
    if not is_whole and not is_split:
        raise ConfigError(
            f"{type(model).__name__} cannot be split over {num_ranks} tensor-parallel ranks: each "
            f"would have {heads[0]} of {num_heads} heads, but {heads[1]} of {num_kv_heads} "
            "key-value heads"
        )
