"""What a batch tells of itself, and what its answers depend on."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from furiosa_llm.batch.job import BatchJob
from furiosa_llm.config import EngineArgs
from furiosa_llm.dataset.hashing import hash_model, hash_text, hash_tokenizer
from furiosa_llm.dataset.manifest import InputFile, Manifest, describe_inputs
from furiosa_llm.dataset.reader import RowSource
from furiosa_llm.devices import parse_devices
from furiosa_llm.errors import DatasetError, ModelLoadError
from furiosa_llm.llm_engine import LLMEngine
from furiosa_llm.machine_limits import count_gpus
from furiosa_llm.sampling_params import SamplingParams

# They change when and where an answer is computed, not what it is.
_WITHOUT_INFLUENCE = frozenset(
    {
        "tensor_parallel_size",
        "pipeline_parallel_size",
        "data_parallel_size",
        "threads_per_replica",
        "cache_dir",
        "max_num_seqs",
        "max_num_batched_tokens",
        "paged_attention_num_blocks",
        "paged_attention_block_size",
        "gpu_memory_utilization",
        "enable_prefix_caching",
        "prefill_chunk_size",
        "npu_queue_limit",
        "max_processing_samples",
        "spare_blocks_ratio",
        "is_offline",
        # What they come to is told by `_arithmetic`.
        "devices",
        "dtype",
    }
)

_DESCRIBED_APART = frozenset({"engine_args", "sampling_params", "columns", "shard"})


def describe_batch(job: BatchJob, source: RowSource) -> Manifest:
    """Returns the manifest as far as it is known before the model is loaded.

    Args:
        job: What to do.
        source: Its input.

    Raises:
        DatasetError: The input cannot be read.
        ModelLoadError: The model cannot be read.
    """
    args, params = job.engine_args, job.sampling_params
    try:
        model_hash = hash_model(Path(args.model))
        tokenizer_hash = hash_tokenizer(Path(args.tokenizer or args.model))
    except DatasetError as error:
        raise ModelLoadError(str(error)) from error
    inputs = describe_inputs(source)
    asked = dataclasses.asdict(args)
    del asked["left_open"]  # it has done its part
    names = ("prompt_column", "params_column", "template")
    of_columns = {name: getattr(job.columns, name) for name in names}
    others = {
        field.name: getattr(job, field.name)
        for field in dataclasses.fields(job)
        if field.name not in _DESCRIBED_APART
    }
    identity = {
        **{name: value for name, value in asked.items() if name not in _WITHOUT_INFLUENCE},
        **of_columns,
        "params_column": job.columns.params_name,
        **_params_identity(params),
        "model": model_hash,
        "tokenizer": tokenizer_hash or args.tokenizer or args.model,
        "input": [_content(file) for file in inputs],
        "shard": str(source.shard),
        **_arithmetic(args),
    }
    return Manifest(
        model=args.model,
        model_hash=model_hash,
        tokenizer_hash=tokenizer_hash,
        options={**asked, **of_columns, **others},
        sampling_params=params,
        seed=args.seed,
        inputs=inputs,
        identity=identity,
        shard=source.shard,
    )


def with_engine(manifest: Manifest, engine: LLMEngine) -> Manifest:
    """Adds what the engine decided."""
    template = engine.tokenizer.chat_template
    return dataclasses.replace(
        manifest,
        chat_template_hash=None if template is None else hash_text(template),
        options={
            **manifest.options,
            **dataclasses.asdict(engine.limits.scheduler_config),
            "placement": str(engine.placement),
            "num_blocks": engine.limits.cache_config.num_blocks,
            "max_model_len": engine.limits.model_info.max_model_len,
        },
    )


def _params_identity(params: SamplingParams) -> dict[str, object]:
    values = {field.name: getattr(params, field.name) for field in dataclasses.fields(params)}
    values.pop("output_kind")
    values["top_k"] = max(params.top_k, 0)  # -1 is all tokens, as 0 is
    if values.pop("fits_context"):
        values["max_tokens"] = f"{params.max_tokens}, or what a prompt leaves of the context"
    values["sampling_seed"] = values.pop("seed")  # `seed` is the engine's
    return values


def _arithmetic(args: EngineArgs) -> dict[str, object]:
    """What the model computes on and in, whether that was asked for or found here."""
    kinds = {"cuda" if count_gpus() else "cpu"}
    if args.devices is not None:
        kinds = {device.kind for device in parse_devices(args.devices)}
    device = "cuda" if kinds == {"cuda"} else "cpu"  # where NPUs are emulated, too
    return {"computed_on": device, "computed_in": args.dtype_on(device)}


def _content(file: InputFile) -> str:
    """What tells whether a file is the same, wherever it is now; a stream is what it is called."""
    return file.path if file.hash is None else f"{file.num_bytes} bytes, {file.hash}"
