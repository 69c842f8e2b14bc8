"""The options of `EngineArgs` as keywords, for functions that take them one by one."""

from __future__ import annotations

from typing import TypedDict


class EngineOptions(TypedDict, total=False):
    """Every field of `EngineArgs` but the model; what each one means stands there."""

    revision: str | None
    tokenizer: str | None
    tokenizer_mode: str
    add_special_tokens: bool
    dtype: str
    quantization: str | None
    deterministic: bool
    seed: int
    devices: str | None
    tensor_parallel_size: int | None
    pipeline_parallel_size: int | None
    data_parallel_size: int | None
    threads_per_replica: int | None
    cache_dir: str | None
    max_model_len: int | None
    max_num_seqs: int | None
    max_num_batched_tokens: int | None
    paged_attention_num_blocks: int | None
    paged_attention_block_size: int
    gpu_memory_utilization: float | None
    enable_prefix_caching: bool
    prefill_chunk_size: int | None
    npu_queue_limit: int | None
    max_processing_samples: int | None
    spare_blocks_ratio: float | None
    is_offline: bool | None
    trust_remote_code: bool
    allow_pickle: bool
    left_open: tuple[str, ...]
