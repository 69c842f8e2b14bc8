"""Reads what a checkpoint says of itself, and refuses by name what cannot be served."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from transformers import AutoConfig, GenerationConfig
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING

from furiosa_llm.errors import ModelLoadError
from furiosa_llm.modeling import adapters

_SERVED_LAYER_TYPES = frozenset(
    {"full_attention", "sliding_attention", "attention", "chunked_attention"}
)
_LENGTH_DEPENDENT_ROPE = frozenset({"dynamic", "longrope"})


def load_config(path: str, *, trust_remote_code: bool) -> Any:
    """Reads the configuration in a folder.

    Raises:
        ModelLoadError: It is missing or damaged.
    """
    try:
        return AutoConfig.from_pretrained(path, trust_remote_code=trust_remote_code)
    except (OSError, ValueError, KeyError) as error:
        raise ModelLoadError(
            f"{path}: cannot read config.json as a model: {one_line(error)}"
        ) from error


def refuse_unserved(path: str, config: Any) -> None:
    """Names what cannot be served before any weight is read."""
    architectures = config.architectures or [f"model type {config.model_type!r}"]
    name = architectures[0]
    if config.is_encoder_decoder:
        raise ModelLoadError(f"{path}: {name} is an encoder-decoder model, which is not supported")
    if type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING:
        if getattr(config, "auto_map", None):
            return  # code of the checkpoint's own; the attention layers are looked at once loaded
        raise ModelLoadError(f"{path}: {name} is not a causal language model")
    model_class = MODEL_FOR_CAUSAL_LM_MAPPING[type(config)]
    if model_class._is_stateful:
        raise ModelLoadError(f"{path}: {name} is a recurrent model, which is not supported")
    if not adapters.attends_through_interface(model_class):
        raise ModelLoadError(
            f"{path}: {name} does not let its attention be replaced, so it is not supported"
        )
    text_config = config.get_text_config()
    num_borrowed = getattr(text_config, "num_kv_shared_layers", None)
    if num_borrowed and num_borrowed == text_config.num_hidden_layers:
        raise ModelLoadError(f"{path}: {name} takes its keys and values from another model")
    if getattr(text_config, "alibi", False):
        raise ModelLoadError(
            f"{path}: {name} biases its scores by distance (alibi), which is not supported"
        )
    layer_types = set(getattr(text_config, "layer_types", None) or ()) - _SERVED_LAYER_TYPES
    if layer_types:
        raise ModelLoadError(
            f"{path}: {name} has layers of type {', '.join(sorted(layer_types))}, which are not "
            "supported"
        )


def max_model_len_of(config: Any) -> int:
    """Returns the longest sequence whose positions are all encoded alike."""
    text_config = config.get_text_config()
    limit: int = (
        getattr(text_config, "max_position_embeddings", None)
        or getattr(text_config, "max_target_positions", None)
        or 2048
    )
    for rope in _rope_parameters(text_config):
        if rope.get("rope_type") in _LENGTH_DEPENDENT_ROPE:
            # Past the original length these would encode a token differently in a longer batch.
            limit = min(limit, rope.get("original_max_position_embeddings") or limit)
    if getattr(text_config, "attn_temperature_tuning", False):
        limit = min(limit, text_config.floor_scale - 1)  # see adapters.adapt
    if "chunked_attention" in (getattr(text_config, "layer_types", None) or ()):
        limit = min(limit, text_config.attention_chunk_size)  # the first chunk sees all of itself
    return limit


def _rope_parameters(text_config: Any) -> list[Mapping[str, Any]]:
    """Returns the parameters of a model, or those of each of its kinds of layers."""
    parameters = getattr(text_config, "rope_parameters", None) or {}
    nested = [part for part in parameters.values() if isinstance(part, Mapping)]
    return nested or [parameters]


def eos_token_ids_of(path: str, generation_config: GenerationConfig | None) -> frozenset[int]:
    """Returns the tokens that end an answer."""
    eos = generation_config.eos_token_id if generation_config is not None else None
    if eos is None and (Path(path) / "config.json").is_file():
        eos = json.loads((Path(path) / "config.json").read_text()).get("eos_token_id")
    if eos is None:
        return frozenset()
    return frozenset(eos if isinstance(eos, list) else [eos])


def one_line(error: BaseException) -> str:
    """Returns the first line of a message that may have many."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__


def quantization_method_of(config: Any) -> str | None:
    """Returns the name of the way in which a checkpoint's weights are quantised, if they are."""
    quantization = getattr(config, "quantization_config", None)
    if quantization is None:
        return None
    if not isinstance(quantization, dict):
        quantization = quantization.to_dict()
    return str(quantization.get("quant_method", "an unknown method"))
