"""Makes an artifact: a checkpoint whose folder also says how it is to be run."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path

from furiosa_llm.artifact.contents import ARTIFACT_FILE, RUNTIME_FILE, Artifact, runtime_json
from furiosa_llm.artifact.hub import find_model
from furiosa_llm.artifact.reading import read_artifact
from furiosa_llm.artifact_builder.folder import FolderWriter, check_output, new_folder
from furiosa_llm.artifact_builder.options import BuildOptions
from furiosa_llm.artifact_builder.source import (
    CONFIG_FILE,
    companion_files,
    config_with_dtype,
    file_chunks,
)
from furiosa_llm.artifact_builder.weights import (
    StoredTensor,
    find_tensors,
    main_dtype,
    plan_shards,
    shard_chunks,
    shard_index,
)
from furiosa_llm.dataset.manifest import installed_versions, utc_now
from furiosa_llm.dataset.redaction import redacted_text
from furiosa_llm.errors import ConfigError, DatasetError, ModelLoadError
from furiosa_llm.modeling.model_outline import ModelOutline, outline_model
from furiosa_llm.modeling.pipeline_split import check_num_stages
from furiosa_llm.modeling.weight_files import INDEX_FILE
from furiosa_llm.tokenization import Tokenizer

_PROGRAM = "furiosa-llm-cli"


@dataclass(frozen=True, slots=True, kw_only=True)
class BuildProgress:
    """How far a build has come.

    Attributes:
        phase: `reading`, `writing`, `checking` or `done`.
        num_bytes: Weights written so far.
        num_total_bytes: Weights to write.
    """

    phase: str
    num_bytes: int = 0
    num_total_bytes: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class BuildSummary:
    """What was built.

    Attributes:
        output: The folder.
        artifact: What it says of itself.
        num_stored_bytes: What the checkpoint's weights take.
        seconds: From the first look at the checkpoint to the end.
    """

    output: Path
    artifact: Artifact
    num_stored_bytes: int
    seconds: float


def build_artifact(
    model: str,
    output: Path,
    options: BuildOptions,
    *,
    overwrite: bool = False,
    on_progress: Callable[[BuildProgress], None] = lambda _: None,
) -> BuildSummary:
    """Writes the artifact of a checkpoint, and reads it again to be sure of it.

    The folder appears under its name when all of it is on the disk. It is a checkpoint too: the
    weights have the names that they had, and `config.json` stands beside them.

    Args:
        model: A checkpoint folder, a hub id, or an artifact, of which only the model is taken.
        output: The folder to write.
        options: What the artifact is to be.
        overwrite: Replace an artifact that is there already.
        on_progress: Called at the start of each phase and for every few megabytes.

    Raises:
        ConfigError: Options do not go with the model, or the output lies in it.
        DatasetError: The output exists or cannot be written.
        ModelLoadError: The model cannot be read or is not supported.
    """
    started = time.monotonic()
    on_progress(BuildProgress(phase="reading"))
    check_output(output, Path(model), overwrite=overwrite)
    dtype = options.target_dtype
    revision = options.revision
    folder = find_model(model, revision=revision)
    outline = outline_model(str(folder), dtype=dtype, trust_remote_code=options.trust_remote_code)
    runtime = options.runtime_config()
    _check_options(options, outline)
    Tokenizer(str(folder), trust_remote_code=options.trust_remote_code)  # refused now, not in run
    tensors = find_tensors(folder, dtype, outline.uncast_names)
    artifact = Artifact(
        name=options.name or output.resolve().name,
        model=redacted_text(model if revision is None else f"{model}@{revision}"),
        architecture=outline.architecture,
        dtype=main_dtype(tensors),
        num_parameters=sum(tensor.num_elements for tensor in tensors),
        num_weight_bytes=sum(tensor.num_bytes for tensor in tensors),
        devices=options.devices,
        tensor_parallel_size=options.tensor_parallel_size,
        pipeline_parallel_size=options.pipeline_parallel_size,
        data_parallel_size=options.data_parallel_size,
        program_version=installed_versions()[_PROGRAM],
        created_at=utc_now(),
        runtime=runtime,
    )
    with new_folder(output) as writer:
        _write_companions(writer, folder, options)
        _write_weights(writer, tensors, on_progress)
        artifact = _write_description(writer, artifact)
        on_progress(BuildProgress(phase="checking"))
        _check_written(writer.folder, output)
    on_progress(BuildProgress(phase="done"))
    return BuildSummary(
        output=output,
        artifact=artifact,
        num_stored_bytes=sum(tensor.num_stored_bytes for tensor in tensors),
        seconds=time.monotonic() - started,
    )


def _check_options(options: BuildOptions, outline: ModelOutline) -> None:
    if options.target_dtype != "auto" and outline.is_quantised:
        raise ConfigError(
            f"dtype {options.target_dtype} is not possible: the checkpoint's weights are "
            "quantised, and casting them would spoil them; leave the dtype auto"
        )
    if outline.num_layers is not None:
        check_num_stages(outline.num_layers, options.pipeline_parallel_size or 1)
    limit, wanted = outline.max_model_len, options.max_seq_len_to_capture
    if wanted is None:
        options.runtime_config().require_buckets_within(limit, "the model's own limit")
    elif wanted > limit:
        raise ConfigError(
            f"max_seq_len_to_capture ({wanted}) exceeds the model's own limit of {limit} tokens"
        )


def _write_companions(writer: FolderWriter, folder: Path, options: BuildOptions) -> None:
    """Writes everything of the checkpoint but its weights."""
    if options.target_dtype == "auto":
        writer.write(CONFIG_FILE, file_chunks(folder / CONFIG_FILE))
    else:
        writer.write(CONFIG_FILE, [config_with_dtype(folder, options.target_dtype)])
    for name in companion_files(folder, with_code=options.trust_remote_code):
        writer.write(name, file_chunks(folder / name))


def _write_weights(
    writer: FolderWriter,
    tensors: Iterable[StoredTensor],
    on_progress: Callable[[BuildProgress], None],
) -> None:
    shards = plan_shards(list(tensors))
    num_total_bytes = sum(tensor.num_bytes for shard in shards for tensor in shard.tensors)
    num_bytes = 0

    def count(num_new_bytes: int) -> None:
        nonlocal num_bytes
        num_bytes = min(num_bytes + num_new_bytes, num_total_bytes)  # headers are no weights
        on_progress(
            BuildProgress(phase="writing", num_bytes=num_bytes, num_total_bytes=num_total_bytes)
        )

    for shard in shards:
        writer.write(shard.name, shard_chunks(shard), count)
    if len(shards) > 1:
        _write_json(writer, INDEX_FILE, shard_index(shards))


def _write_description(writer: FolderWriter, artifact: Artifact) -> Artifact:
    """Writes the options and, last of all, what the artifact says of itself."""
    _write_json(writer, RUNTIME_FILE, runtime_json(artifact.runtime))
    described = replace(artifact, files=tuple(writer.files))
    _write_json(writer, ARTIFACT_FILE, described.to_json())
    return described


def _write_json(writer: FolderWriter, name: str, content: dict[str, object]) -> None:
    writer.write(name, [(json.dumps(content, indent=2, ensure_ascii=False) + "\n").encode()])


def _check_written(folder: Path, output: Path) -> None:
    """Reads every byte again."""
    try:
        read_artifact(folder, verify=True)
    except ModelLoadError as error:
        raise DatasetError(f"{output}: does not read back as it was written: {error}") from error
