"""Loads a checkpoint through transformers, or says in one line why it cannot be served."""

from __future__ import annotations

import json
import re
import socket
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import torch
from huggingface_hub import constants, try_to_load_from_cache
from safetensors import SafetensorError
from transformers import AutoConfig, AutoModelForCausalLM, GenerationConfig, PreTrainedModel
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING
from transformers.utils import logging as transformers_logging

from furiosa_llm.config import ModelInfo
from furiosa_llm.errors import ModelLoadError
from furiosa_llm.modeling import paged_attention
from furiosa_llm.modeling.model_split import ModelPart, ModelSplit, take_part
from furiosa_llm.modeling.paged_attention import AttentionLayer
from furiosa_llm.modeling.pipeline_split import PipelineStage

_SERVED_LAYER_TYPES = frozenset({"full_attention", "sliding_attention", "attention"})
_LENGTH_DEPENDENT_ROPE = frozenset({"dynamic", "longrope"})


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadedModel:
    """A model ready to be bound to a paged cache.

    Attributes:
        model: In evaluation mode, with our attention function.
        layers: Its attention layers, in the order in which they run.
        info: Its limits and special tokens.
        stage: The pipeline stage that is left of it, where it is cut into several.
    """

    model: PreTrainedModel
    layers: tuple[AttentionLayer, ...]
    info: ModelInfo
    stage: PipelineStage | None = None

    @property
    def num_parameters(self) -> int:
        """Weights of the model; those that two layers share count once."""
        return sum(parameter.numel() for parameter in self.model.parameters())


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelOutline:
    """What a checkpoint is, before its weights are read.

    Attributes:
        architecture: Class of the model, as `LlamaForCausalLM`.
        max_model_len: Longest prompt plus answer, in tokens.
        is_quantised: Whether its weights have a format of their own.
        uncast_names: Regular expressions of the weights that keep their type.
    """

    architecture: str
    max_model_len: int
    is_quantised: bool
    uncast_names: tuple[str, ...]


def load_model(
    path: str,
    *,
    dtype: torch.dtype,
    trust_remote_code: bool = False,
    split: ModelSplit | None = None,
) -> LoadedModel:
    """Loads the checkpoint in a folder or of a hub id.

    With a `split`, only a rank's part is kept. Weights that the checkpoint holds in `dtype` are not
    even read then: the files are mapped, not copied.

    Raises:
        ModelLoadError: It is missing, damaged, or of an architecture that cannot be served.
        ConfigError: It cannot be split as `split` says.
    """
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    paged_attention.register()
    config = _load_config(path, trust_remote_code=trust_remote_code)
    _refuse_unserved(path, config)
    try:
        model = AutoModelForCausalLM.from_pretrained(
            path,
            dtype=dtype,
            attn_implementation=paged_attention.ATTENTION_NAME,
            trust_remote_code=trust_remote_code,
            use_safetensors=True,
        )
    except (OSError, ValueError, KeyError, ImportError, SafetensorError) as error:
        raise ModelLoadError(f"{path}: cannot load the weights: {_one_line(error)}") from error
    except RuntimeError as error:
        raise ModelLoadError(
            f"{path}: the weights do not fit config.json: {_one_line(error)}"
        ) from error
    model.eval()
    info = ModelInfo(
        max_model_len=_max_model_len(config),
        vocab_size=model.get_output_embeddings().weight.shape[0],
        eos_token_ids=_eos_token_ids(path, model.generation_config),
    )
    part = _take_part(path, model, split)
    return LoadedModel(model=model, layers=tuple(part.layers), info=info, stage=part.stage)


def outline_model(path: str, *, dtype: str, trust_remote_code: bool = False) -> ModelOutline:
    """Tells what a checkpoint is, from its `config.json` alone.

    Args:
        path: A folder or a hub id.
        dtype: That its weights are to have; `auto` for the one they have.
        trust_remote_code: Whether to run the checkpoint's own code.

    Raises:
        ModelLoadError: It is missing, or of an architecture that cannot be served.
    """
    transformers_logging.set_verbosity_error()
    config = _load_config(path, trust_remote_code=trust_remote_code)
    _refuse_unserved(path, config)
    is_quantised = getattr(config, "quantization_config", None) is not None
    return ModelOutline(
        architecture=(config.architectures or [config.model_type])[0],
        max_model_len=_max_model_len(config),
        is_quantised=is_quantised,
        uncast_names=()
        if dtype == "auto" or is_quantised
        else _uncast_names(path, config, getattr(torch, dtype), trust_remote_code),
    )


def _uncast_names(
    path: str, config: Any, dtype: torch.dtype, trust_remote_code: bool
) -> tuple[str, ...]:
    """Returns what keeps its type when transformers loads the model as `dtype`."""
    try:
        with torch.device("meta"):  # takes no memory
            model = AutoModelForCausalLM.from_config(
                config, dtype=dtype, trust_remote_code=trust_remote_code
            )
    except (OSError, ValueError, KeyError, ImportError, RuntimeError) as error:
        raise ModelLoadError(
            f"{path}: cannot make the model of config.json: {_one_line(error)}"
        ) from error
    planned = (name.replace("*", ".*") for name in model._get_dtype_plan(dtype))
    own = (
        f"^{re.escape(name)}$"
        for name, value in model.state_dict().items()
        if value.is_floating_point() and value.dtype != dtype
    )
    return (*planned, *own)


def _load_config(path: str, *, trust_remote_code: bool) -> Any:
    _check_reachable(path)
    try:
        return AutoConfig.from_pretrained(path, trust_remote_code=trust_remote_code)
    except (OSError, ValueError, KeyError) as error:
        raise ModelLoadError(
            f"{path}: cannot read config.json as a model: {_one_line(error)}"
        ) from error


def _check_reachable(path: str) -> None:
    """Says at once that a model is neither here nor to be had, where the hub would try for long."""
    if Path(path).exists():
        return
    missing = ModelLoadError(
        f"{path}: no such model: neither a checkpoint folder nor a hub id that can be reached; "
        "check --model"
    )
    try:
        if isinstance(try_to_load_from_cache(path, "config.json"), str):
            return
        socket.getaddrinfo(urlsplit(constants.ENDPOINT).hostname, None)
    except (OSError, ValueError) as error:
        raise missing from error


def _refuse_unserved(path: str, config: Any) -> None:
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
    if not model_class._supports_attention_backend:
        raise ModelLoadError(
            f"{path}: {name} does not let its attention be replaced, so it is not supported"
        )
    text_config = config.get_text_config()
    layer_types = set(getattr(text_config, "layer_types", None) or ()) - _SERVED_LAYER_TYPES
    if layer_types:
        raise ModelLoadError(
            f"{path}: {name} has layers of type {', '.join(sorted(layer_types))}, which are not "
            "supported"
        )


def _take_part(path: str, model: PreTrainedModel, split: ModelSplit | None) -> ModelPart:
    name = type(model).__name__
    try:
        part = take_part(model, split)
    except ModelLoadError as error:
        raise ModelLoadError(f"{path}: {name} is not supported: {error}") from error
    if len(part.layers) != part.num_layers:
        raise ModelLoadError(
            f"{path}: {name} is not supported: {len(part.layers)} of its {part.num_layers} layers "
            "attend in a way that can be served"
        )
    return part


def _max_model_len(config: Any) -> int:
    """Returns the longest sequence whose positions are all encoded alike."""
    text_config = config.get_text_config()
    limit: int = getattr(text_config, "max_position_embeddings", None) or 2048
    rope = getattr(text_config, "rope_parameters", None) or {}
    if isinstance(rope, Mapping) and rope.get("rope_type") in _LENGTH_DEPENDENT_ROPE:
        # Past the original length these would encode a token differently in a longer batch.
        limit = min(limit, rope.get("original_max_position_embeddings") or limit)
    return limit


def _eos_token_ids(path: str, generation_config: GenerationConfig | None) -> frozenset[int]:
    eos = generation_config.eos_token_id if generation_config is not None else None
    if eos is None and (Path(path) / "config.json").is_file():
        eos = json.loads((Path(path) / "config.json").read_text()).get("eos_token_id")
    if eos is None:
        return frozenset()
    return frozenset(eos if isinstance(eos, list) else [eos])


def _one_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__
