"""Finds the model, and gives options that a user left open the values of an artifact."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from furiosa_llm.artifact.contents import PARALLEL_SIZES, Artifact
from furiosa_llm.artifact.hub import find_model, hide_downloads
from furiosa_llm.artifact.reading import is_artifact, read_artifact
from furiosa_llm.config import EngineArgs
from furiosa_llm.paths import is_there

_OF_ARTIFACT = ("devices", *PARALLEL_SIZES)
_OF_RUNTIME = (
    "quantization",
    "max_model_len",
    "max_num_seqs",
    "max_num_batched_tokens",
    "prefill_chunk_size",
    "paged_attention_num_blocks",
    "npu_queue_limit",
    "max_processing_samples",
    "spare_blocks_ratio",
    "is_offline",
)


def resolve_engine_args(args: EngineArgs) -> EngineArgs:
    """Names the model's folder, and fills in what was not given if that is an artifact.

    A model on the hub is downloaded, unless the cache has it. It may be called again on its own
    result.

    Raises:
        ModelLoadError: The model cannot be found, or the artifact is damaged.
        ConfigError: An option that was given does not go with one of the artifact's, or a
            revision does not go with a folder.
    """
    if not is_there(args.model):
        hide_downloads()
    folder = find_model(args.model, revision=args.revision, allow_pickle=args.allow_pickle)
    if folder != Path(args.model):
        args = dataclasses.replace(args, model=str(folder), revision=None)
    if not is_artifact(folder):
        return args
    defaults = _defaults(read_artifact(folder))
    taken = {
        name: value
        for name, value in defaults.items()
        if getattr(args, name) is None and name not in args.left_open
    }
    if args.dtype == "auto":
        taken["dtype"] = defaults["dtype"]
    return dataclasses.replace(args, **taken)


def _defaults(artifact: Artifact) -> dict[str, Any]:
    values = {name: getattr(artifact, name) for name in _OF_ARTIFACT}
    values.update((name, getattr(artifact.runtime, name)) for name in _OF_RUNTIME)
    return {**values, "dtype": artifact.runtime.dtype}
