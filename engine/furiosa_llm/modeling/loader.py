"""Loads a checkpoint through transformers, or says in one line why it cannot be served."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pickle import UnpicklingError

import torch
from safetensors import SafetensorError
from transformers import AutoModelForCausalLM, PretrainedConfig, PreTrainedModel
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING
from transformers.utils import logging as transformers_logging

from furiosa_llm.engine_limits import ModelInfo
from furiosa_llm.errors import ModelLoadError
from furiosa_llm.library_imports.meta_kernels import with_meta_kernels
from furiosa_llm.modeling import adapters, paged_attention
from furiosa_llm.modeling.cpu.fusion import fuse, make_deterministic, quantize
from furiosa_llm.modeling.model_config import (
    eos_token_ids_of,
    load_config,
    max_model_len_of,
    one_line,
    quantization_method_of,
    refuse_unserved,
)
from furiosa_llm.modeling.model_split import ModelPart, ModelSplit, take_part
from furiosa_llm.modeling.paged_attention import AttentionLayer
from furiosa_llm.modeling.pipeline_split import PipelineStage
from furiosa_llm.modeling.weight_files import refuse_pickle

# Below this, on a CPU, threads cost more than they bring. On two cores, 10,000 rows of a model of
# 0.8 million parameters take as long with two threads as with one, and many times longer when
# another process wants a core.
MIN_PARAMETERS_FOR_THREADS = 10_000_000


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadedModel:
    """A model ready to be bound to a paged cache.

    Attributes:
        model: In evaluation mode, with our attention function.
        layers: Its attention layers, in the order in which they run.
        info: Its limits and special tokens.
        num_parameters: Weights of the model; those that two layers share count once.
        stage: The pipeline stage that is left of it, where it is cut into several.
        cache_dtype: Of the keys and values that a CPU keeps.
    """

    model: PreTrainedModel
    layers: tuple[AttentionLayer, ...]
    info: ModelInfo
    num_parameters: int
    stage: PipelineStage | None = None
    cache_dtype: torch.dtype = torch.float32

    def fused(self, *, quantization: str | None, deterministic: bool) -> LoadedModel:
        """Returns the model, which is on a CPU, with its modules replaced by faster ones.

        Raises:
            ModelLoadError: It cannot be quantised, or made deterministic, as asked for.
        """
        name = type(self.model).__name__
        layers = fuse(self.model, self.layers, max_model_len=self.info.max_model_len)
        if quantization is not None:
            try:
                quantize(self.model)
            except ModelLoadError as error:
                raise ModelLoadError(
                    f"{name} cannot be quantised to {quantization}: {error}"
                ) from error
        _release_files(self.model, num_parameters=self.num_parameters)
        if deterministic:
            try:
                make_deterministic(self.model)
            except ModelLoadError as error:
                raise ModelLoadError(f"{name} is not deterministic: {error}") from error
        cache_dtype = torch.float32
        if quantization is not None and all(layer.shape.key_size % 2 == 0 for layer in layers):
            cache_dtype = torch.bfloat16  # which errs less than weights of 8 bits
        return dataclasses.replace(self, layers=layers, cache_dtype=cache_dtype)

    @property
    def is_small(self) -> bool:
        """Whether threads that work on it wait for each other longer than they work."""
        return self.num_parameters < MIN_PARAMETERS_FOR_THREADS


def load_model(
    path: str,
    *,
    dtype: torch.dtype | None,
    trust_remote_code: bool = False,
    allow_pickle: bool = False,
    split: ModelSplit | None = None,
) -> LoadedModel:
    """Loads the checkpoint in a folder.

    Weights are read from safetensors; with `allow_pickle`, where there are none, also from pickles,
    of which torch takes tensors and nothing else. With a `split`, only a rank's part is kept.
    Weights that the checkpoint holds in `dtype` are not even read then: the files are mapped, not
    copied. With None for `dtype` they keep the type that the checkpoint says they have.

    Raises:
        ModelLoadError: It is missing, damaged, or of an architecture that cannot be served.
        ConfigError: It cannot be split as `split` says.
    """
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    paged_attention.register()
    config = load_config(path, trust_remote_code=trust_remote_code)
    refuse_unserved(path, config)
    if not allow_pickle:
        refuse_pickle(path, config)
    try:
        model = with_meta_kernels(
            lambda: AutoModelForCausalLM.from_pretrained(
                path,
                dtype="auto" if dtype is None else dtype,
                attn_implementation=adapters.attention_to_load_with(
                    MODEL_FOR_CAUSAL_LM_MAPPING.get(type(config), None)
                ),
                trust_remote_code=trust_remote_code,
                use_safetensors=None if allow_pickle else True,
                weights_only=True,
            )
        )
    except (
        OSError,
        ValueError,
        KeyError,
        ImportError,
        SafetensorError,
        RuntimeError,
        UnpicklingError,
    ) as error:
        raise ModelLoadError(f"{path}: {_why_not_loaded(config, error)}") from error
    model.eval()
    adapters.adapt(model)
    info = ModelInfo(
        max_model_len=max_model_len_of(config),
        vocab_size=model.get_output_embeddings().weight.shape[0],
        eos_token_ids=eos_token_ids_of(path, model.generation_config),
    )
    part = _take_part(path, model, split, max_model_len=info.max_model_len)
    return LoadedModel(
        model=model,
        layers=tuple(part.layers),
        info=info,
        num_parameters=sum(parameter.numel() for parameter in model.parameters()),
        stage=part.stage,
    )


def _release_files(model: torch.nn.Module, *, num_parameters: int) -> None:
    """Copies the weights that are left, where they are the lesser part of what was loaded.

    As long as one of them lies in a file that is mapped, the pages of all the others, which were
    packed, count as memory of this process.
    """
    left = list(model.parameters())
    if 2 * sum(parameter.numel() for parameter in left) < num_parameters:
        for parameter in left:
            parameter.data = parameter.data.clone()


def _why_not_loaded(config: PretrainedConfig, error: Exception) -> str:
    method = quantization_method_of(config)
    if method is not None:
        return (
            f"cannot load weights that are quantised with {method}: {one_line(error)}. The "
            "checkpoint that they were made from can be run with --quantization int8"
        )
    if isinstance(error, UnpicklingError):
        return "the pickled weights hold more than tensors, so they are not loaded"
    if isinstance(error, RuntimeError):
        return f"the weights do not fit config.json: {one_line(error)}"
    return f"cannot load the weights: {one_line(error)}"


def _take_part(
    path: str, model: PreTrainedModel, split: ModelSplit | None, *, max_model_len: int
) -> ModelPart:
    name = type(model).__name__
    try:
        part = take_part(model, split, max_model_len=max_model_len)
    except ModelLoadError as error:
        raise ModelLoadError(f"{path}: {name} is not supported: {one_line(error)}") from error
    if len(part.layers) != part.num_layers:
        raise ModelLoadError(
            f"{path}: {name} is not supported: {len(part.layers)} of its {part.num_layers} layers "
            "attend in a way that can be served"
        )
    return part
