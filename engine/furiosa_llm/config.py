"""What the user asks of an engine: `EngineArgs`."""

from __future__ import annotations

import argparse
import os
from dataclasses import dataclass
from pathlib import Path

from furiosa_llm.config_checks import (
    require_one_of,
    require_positive,
    require_ratio,
    require_room_for_each,
    require_utilization,
)
from furiosa_llm.devices import MAX_PROCESSES, parse_devices
from furiosa_llm.errors import ConfigError
from furiosa_llm.options import (
    LeftOpen,
    add_arguments,
    check_types,
    option,
    options_of,
    parse_bool,
    parse_optional,
    parse_or_leave_open,
    parse_size,
)

DTYPES = ("auto", "float32", "bfloat16", "float16")
QUANTIZATIONS = ("int8", "fp8", "int4")
GPU_QUANTIZATIONS = ("fp8", "int4")  # on nothing else
TOKENIZER_MODES = ("auto", "slow")
BLOCK_SIZES = (16, 32, 64, 128, 256)
DEFAULT_MAX_NUM_SEQS = 256
DEFAULT_MAX_NUM_BATCHED_TOKENS = 1024
DEFAULT_GPU_MEMORY_UTILIZATION = 0.9
_PROCESS_COUNTS = (
    "tensor_parallel_size",
    "pipeline_parallel_size",
    "data_parallel_size",
    "threads_per_replica",
)
_POSITIVE = (
    "max_num_seqs",
    "max_num_batched_tokens",
    "max_processing_samples",
    "max_model_len",
    "paged_attention_num_blocks",
    "prefill_chunk_size",
    "npu_queue_limit",
    *_PROCESS_COUNTS,
)


def default_cache_dir() -> str:
    """Returns `${XDG_CACHE_HOME:-~/.cache}/furiosa/llm`."""
    base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return str(Path(base).expanduser() / "furiosa" / "llm")


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineArgs:
    """The engine's options as a user gives them; `None` leaves the choice to the engine.

    Where the model is an artifact, its own value stands for `None`, except in an option that is
    named in `left_open`: the command line's `none`.

    Raises:
        ConfigError: A value is out of range.
    """

    model: str = option(
        "An artifact, a checkpoint folder in Hugging Face layout, or a hub id.", metavar="MODEL"
    )
    revision: str | None = option(
        "Branch, tag or commit of a model of the hub; its main branch if not given.",
        default=None,
        metavar="REVISION",
    )
    tokenizer: str | None = option(
        "Name or path of a Hugging Face tokenizer; the model's own if not given.", default=None
    )
    tokenizer_mode: str = option(
        "auto: the fast tokenizer if there is one; slow: always the slow one.",
        default="auto",
        choices=TOKENIZER_MODES,
    )
    add_special_tokens: bool = option(
        "Add the special tokens that the tokenizer adds to a text by itself; switch it off where "
        "prompts hold them.",
        default=True,
        is_flag=True,
    )
    dtype: str = option(
        "Type of weights and activations; auto is the one that an artifact was built for, else "
        "float32 on a CPU and the checkpoint's own on a GPU.",
        default="auto",
        choices=DTYPES,
    )
    quantization: str | None = option(
        "int8: on a CPU, linear layers with weights and activations of 8 bits, keys and values of "
        "16 bits and all else in float32, on a GPU, weights alone of 8 bits; fp8: with weights and "
        "activations of 8 bits on a GPU; int4: with weights alone of 4 bits on a GPU; the "
        "artifact's, else none, if not given.",
        parse=parse_or_leave_open(str),
        default=None,
        choices=(*QUANTIZATIONS, "none"),
    )
    deterministic: bool = option(
        "Answer a prompt with the same bytes whatever runs beside it.", default=False, is_flag=True
    )
    seed: int = option("Seed of every random draw.", parse=int, default=0)
    devices: str | None = option(
        "Where to run: npu:0, npu:0:0-3, cpu, cpu:1, cuda:0, or a comma list of one kind; every "
        "GPU if there is one, else cpu, if not given.",
        parse=parse_or_leave_open(str),
        default=None,
        metavar="DEVICES",
    )
    tensor_parallel_size: int | None = option(
        "Elements that share the work of each layer; the artifact's, else 8 on NPUs and 1 "
        "elsewhere, if not given.",
        parse=parse_or_leave_open(int),
        default=None,
        metavar="N",
    )
    pipeline_parallel_size: int | None = option(
        "Stages that the layers are divided among; the artifact's, else 1, if not given.",
        parse=parse_or_leave_open(int),
        default=None,
        metavar="N",
    )
    data_parallel_size: int | None = option(
        "Replicas of the model; the artifact's, else as many as the devices hold, if not given.",
        parse=parse_or_leave_open(int),
        default=None,
        metavar="N",
    )
    threads_per_replica: int | None = option(
        "Threads that each replica computes with on a CPU, at most one for each core; the cores "
        "divided evenly if not given.",
        parse=parse_optional(int),
        default=None,
        metavar="N",
    )
    cache_dir: str | None = option(
        "Folder for what makes the next start quicker, as compiled kernels; None keeps nothing on "
        "disk.",
        parse=parse_optional(str),
        default=default_cache_dir(),
        metavar="FOLDER",
    )
    max_model_len: int | None = option(
        "Longest prompt plus answer, in tokens; the artifact's, else the model's own limit, if not "
        "given.",
        parse=parse_or_leave_open(parse_size),
        default=None,
        metavar="SIZE",
    )
    max_num_seqs: int | None = option(
        f"Most requests that run at once; the artifact's, else {DEFAULT_MAX_NUM_SEQS}, if not "
        "given.",
        parse=parse_or_leave_open(parse_size),
        default=None,
        metavar="SIZE",
    )
    max_num_batched_tokens: int | None = option(
        f"Most tokens in one step; the artifact's, else {DEFAULT_MAX_NUM_BATCHED_TOKENS}, if not "
        "given.",
        parse=parse_or_leave_open(parse_size),
        default=None,
        metavar="SIZE",
    )
    paged_attention_num_blocks: int | None = option(
        "KV-cache blocks of each layer; the artifact's, else chosen from free memory, if not "
        "given.",
        parse=parse_or_leave_open(parse_size),
        default=None,
        metavar="SIZE",
    )
    paged_attention_block_size: int = option(
        "Tokens in a KV-cache block: 16, 32, 64, 128 or 256.", parse=parse_size, default=32
    )
    gpu_memory_utilization: float | None = option(
        "Share of a GPU's memory that may be used in all: what the weights, the largest step and "
        f"other programs leave of it is KV cache; {DEFAULT_GPU_MEMORY_UTILIZATION} if not given.",
        parse=parse_optional(float),
        default=None,
        metavar="RATIO",
    )
    enable_prefix_caching: bool = option(
        "Keep blocks of finished requests for others that start alike.", default=True, is_flag=True
    )
    prefill_chunk_size: int | None = option(
        "Most prompt tokens of one request in one step; the artifact's, else no limit of its own, "
        "if not given.",
        parse=parse_or_leave_open(parse_size),
        default=None,
        metavar="SIZE",
    )
    npu_queue_limit: int | None = option(
        "Steps in flight in a replica: with 2 the next one is prepared while the device runs; the "
        "artifact's, else 1 on a CPU, 2 elsewhere, or one for each stage of a pipeline, if not "
        "given.",
        parse=parse_or_leave_open(int),
        default=None,
        metavar="N",
    )
    max_processing_samples: int | None = option(
        "Most rows that the engine holds at once; the artifact's, else 65536, if not given.",
        parse=parse_or_leave_open(parse_size),
        default=None,
        metavar="SIZE",
    )
    spare_blocks_ratio: float | None = option(
        "Share of blocks that admission leaves free for running requests to grow into; the "
        "artifact's, else 0 offline and 0.2 online, if not given.",
        parse=parse_or_leave_open(float),
        default=None,
        metavar="RATIO",
    )
    is_offline: bool | None = option(
        "Order the work for throughput, with no one waiting for a single answer.",
        parse=parse_or_leave_open(parse_bool),
        default=None,
        metavar="TRUE|FALSE",
    )
    trust_remote_code: bool = option(
        "Run Python code that comes with the checkpoint.", default=False, is_flag=True
    )
    allow_pickle: bool = option(
        "Load pickled weights (pytorch_model.bin) where there are no safetensors. A pickle can "
        "hold code: torch is told to take tensors only, but trust where the file comes from.",
        default=False,
        is_flag=True,
    )

    left_open: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        self._note_left_open()
        check_types(self)
        if not self.model:
            raise ConfigError("--model is empty; give a checkpoint folder or a hub id")
        require_positive(self, _POSITIVE)
        for name in _PROCESS_COUNTS:
            value = getattr(self, name)
            if value is not None and value > MAX_PROCESSES:
                raise ConfigError(f"{name} must be at most {MAX_PROCESSES}, got {value}")
        require_room_for_each(self.max_num_batched_tokens, self.max_num_seqs)
        if self.spare_blocks_ratio is not None:
            require_ratio(self.spare_blocks_ratio)
        if self.gpu_memory_utilization is not None:
            require_utilization(self.gpu_memory_utilization)
        if self.devices is not None:
            parse_devices(self.devices)
        if self.cache_dir == "":
            raise ConfigError("cache_dir must be a folder, or None for none, got ''")
        require_one_of("dtype", self.dtype, DTYPES)
        if self.quantization is not None:
            require_one_of("quantization", self.quantization, QUANTIZATIONS)
        require_one_of("tokenizer_mode", self.tokenizer_mode, TOKENIZER_MODES)
        require_one_of("paged_attention_block_size", self.paged_attention_block_size, BLOCK_SIZES)

    def dtype_on(self, device_type: str) -> str:
        """Returns the type of what is not quantised on a `cpu` or `cuda`; `auto` is the model's."""
        is_auto = self.quantization is not None or self.dtype == "auto"
        return "float32" if device_type == "cpu" and is_auto else self.dtype

    def _note_left_open(self) -> None:
        """Turns what the parsers return for `none` into None, and remembers where."""
        names = [entry.name for entry in options_of(type(self))]
        for name in self.left_open:
            if name not in names:
                raise ConfigError(f"left_open must name engine options, got {name!r}")
        found = [name for name in names if getattr(self, name) is LeftOpen.LEFT_OPEN]
        for name in found:
            object.__setattr__(self, name, None)
        if found:
            object.__setattr__(self, "left_open", (*self.left_open, *found))

    @classmethod
    def add_cli_args(cls, parser: argparse.ArgumentParser) -> argparse.ArgumentParser:
        """Adds every option to an argparse parser and returns it."""
        return add_arguments(cls, parser)

    @classmethod
    def from_cli_args(cls, args: argparse.Namespace) -> EngineArgs:
        """Takes the options from a parsed namespace, which may hold other names too."""
        names = [entry.name for entry in options_of(cls)]
        return cls(**{name: getattr(args, name) for name in names})
