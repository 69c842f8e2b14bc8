"""What the options say about a model, once it is known where it runs."""

from __future__ import annotations

from pathlib import Path

import torch

from furiosa_llm.artifact.reading import is_artifact, read_artifact
from furiosa_llm.config import GPU_QUANTIZATIONS, EngineArgs
from furiosa_llm.errors import ConfigError
from furiosa_llm.modeling.loader import LoadedModel

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def refuse_unserved_options(args: EngineArgs, device: torch.device, *, is_split: bool) -> None:
    """Refuses options that the place where a model runs does not have.

    Args:
        args: What was asked for.
        device: Where it runs.
        is_split: Whether several processes share it.

    Raises:
        ConfigError: One is given.
    """
    if device.type == "cpu" and args.gpu_memory_utilization is not None:
        raise ConfigError(
            f"gpu_memory_utilization ({args.gpu_memory_utilization}) is for GPUs, and the model "
            "runs on a CPU; leave it out, and give --paged-attention-num-blocks to limit the cache"
        )
    if device.type == "cpu" and args.quantization in GPU_QUANTIZATIONS:
        raise ConfigError(
            f"quantization {args.quantization} is for GPUs, and the model runs on a CPU; give "
            "int8 or none"
        )
    if device.type == "cpu" and args.quantization is not None and not _is_float32(args):
        raise ConfigError(
            f"dtype {args.dtype} does not go with quantization {args.quantization} on a CPU, where "
            "all else is float32; leave dtype out, or give quantization none"
        )
    if is_split and args.quantization is not None:
        raise ConfigError(
            "quantization is not supported with a model that is split among processes; leave it "
            "out, or run a whole model in each process"
        )
    if args.deterministic and (is_split or device.type != "cpu"):
        where = "with a model that is split among processes" if is_split else f"on {device}"
        raise ConfigError(
            f"deterministic is not supported {where}; leave it out, or run a whole model on a CPU"
        )


def _is_float32(args: EngineArgs) -> bool:
    """Whether no other type was asked for; what an artifact was built with asks for nothing."""
    if args.dtype in ("auto", "float32"):
        return True
    folder = Path(args.model)
    return is_artifact(folder) and args.dtype == read_artifact(folder).runtime.dtype


def dtype_of(args: EngineArgs, device: torch.device) -> torch.dtype | None:
    """Returns the type of weights and activations that are not quantised; None for the model's."""
    return _DTYPES.get(args.dtype_on(device.type))


def choose_max_model_len(args: EngineArgs, loaded: LoadedModel) -> int:
    """Returns the longest prompt plus answer: as asked for, else the model's own limit.

    Raises:
        ConfigError: More was asked for than the model can do.
    """
    limit = loaded.info.max_model_len
    max_model_len = args.max_model_len or limit
    if max_model_len > limit:
        raise ConfigError(
            f"max_model_len ({max_model_len}) exceeds the model's own limit of {limit} tokens"
        )
    return max_model_len
