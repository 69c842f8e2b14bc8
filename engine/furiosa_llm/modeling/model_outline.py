"""Tells what a checkpoint is without reading its weights."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

import torch
from transformers import AutoModelForCausalLM
from transformers.utils import logging as transformers_logging

from furiosa_llm.errors import ModelLoadError
from furiosa_llm.library_imports.meta_kernels import with_meta_kernels
from furiosa_llm.modeling.model_config import (
    load_config,
    max_model_len_of,
    one_line,
    refuse_unserved,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelOutline:
    """What a checkpoint is, before its weights are read.

    Attributes:
        architecture: Class of the model, as `LlamaForCausalLM`.
        max_model_len: Longest prompt plus answer, in tokens.
        num_layers: That a pipeline's stages share; None where the configuration does not say.
        is_quantised: Whether its weights have a format of their own.
        uncast_names: Regular expressions of the weights that keep their type.
    """

    architecture: str
    max_model_len: int
    num_layers: int | None
    is_quantised: bool
    uncast_names: tuple[str, ...]


def outline_model(path: str, *, dtype: str, trust_remote_code: bool = False) -> ModelOutline:
    """Tells what a checkpoint is, from its `config.json` alone.

    Args:
        path: Of its folder.
        dtype: That its weights are to have; `auto` for the one they have.
        trust_remote_code: Whether to run the checkpoint's own code.

    Raises:
        ModelLoadError: It is missing, or of an architecture that cannot be served.
    """
    transformers_logging.set_verbosity_error()
    config = load_config(path, trust_remote_code=trust_remote_code)
    refuse_unserved(path, config)
    is_quantised = getattr(config, "quantization_config", None) is not None
    return ModelOutline(
        architecture=(config.architectures or [config.model_type])[0],
        max_model_len=max_model_len_of(config),
        num_layers=getattr(config, "num_hidden_layers", None),
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
            model = with_meta_kernels(
                lambda: AutoModelForCausalLM.from_config(
                    config, dtype=dtype, trust_remote_code=trust_remote_code
                )
            )
    except (OSError, ValueError, KeyError, ImportError, RuntimeError) as error:
        raise ModelLoadError(
            f"{path}: cannot make the model of config.json: {one_line(error)}"
        ) from error
    planned = (name.replace("*", ".*") for name in model._get_dtype_plan(dtype))
    own = (
        f"^{re.escape(name)}$"
        for name, value in model.state_dict().items()
        if value.is_floating_point() and value.dtype != dtype
    )
    return (*planned, *own)
