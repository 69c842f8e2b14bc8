"""What a user may ask of an artifact."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from furiosa_llm.artifact.contents import PARALLEL_SIZES, Bucket, RuntimeConfig
from furiosa_llm.config import (
    DEFAULT_MAX_NUM_BATCHED_TOKENS,
    DTYPES,
    GPU_QUANTIZATIONS,
    QUANTIZATIONS,
)
from furiosa_llm.config_checks import require_positive
from furiosa_llm.device_mesh import build_mesh
from furiosa_llm.devices import Device, parse_devices
from furiosa_llm.errors import ConfigError
from furiosa_llm.options import option, parse_bool, parse_optional, parse_size


@dataclass(frozen=True, slots=True, kw_only=True)
class BuildOptions:
    """How an artifact's weights are written, and what it is loaded with by default.

    Raises:
        ConfigError: A value is out of range, or options do not go together.
    """

    name: str | None = option(
        "Name of the artifact; the folder's if not given.", default=None, metavar="NAME"
    )
    revision: str | None = option(
        "Branch, tag or commit of a model of the hub; its main branch if not given.",
        default=None,
        metavar="REVISION",
    )
    dtype: str = option(
        "Type that float weights are cast to, and that the artifact is run with; auto keeps the "
        "checkpoint's own, and leaves the choice to run.",
        default="auto",
        choices=DTYPES,
    )
    auto_bfloat16_cast: bool = option("The same as --dtype bfloat16.", default=False, is_flag=True)
    quantization: str | None = option(
        "Default of --quantization. The artifact keeps the weights as they are, and they are "
        "rounded when it is loaded.",
        parse=parse_optional(str),
        default=None,
        choices=(*QUANTIZATIONS, "none"),
    )
    quantization_artifact_path: str | None = option(
        "Folder of quantised weights; refused, since those made elsewhere cannot be read yet.",
        default=None,
        metavar="FOLDER",
    )
    trust_remote_code: bool = option(
        "Run Python code that comes with the checkpoint, and put it into the artifact; loading it "
        "needs --trust-remote-code again.",
        default=False,
        is_flag=True,
    )
    devices: str | None = option(
        "Default of --devices: npu:0, npu:0:0-3, cpu, cuda:0, or a comma list of one kind.",
        default=None,
        metavar="DEVICES",
    )
    tensor_parallel_size: int | None = option(
        "Default of --tensor-parallel-size: elements that share the work of each layer.",
        parse=parse_optional(int),
        default=None,
        metavar="N",
    )
    pipeline_parallel_size: int | None = option(
        "Default of --pipeline-parallel-size: stages that the layers are divided among.",
        parse=parse_optional(int),
        default=None,
        metavar="N",
    )
    data_parallel_size: int | None = option(
        "Default of --data-parallel-size: replicas of the model.",
        parse=parse_optional(int),
        default=None,
        metavar="N",
    )
    prefill_buckets: tuple[Bucket, ...] = option(
        "Shape of a step that reads prompts; may be given several times. The largest LEN is the "
        "default of --prefill-chunk-size. No graph is captured for it.",
        parse=Bucket.parse,
        default=(),
        multiple=True,
        metavar="BATCH,LEN",
    )
    decode_buckets: tuple[Bucket, ...] = option(
        "Shape of a step that continues answers, for which a GPU's graph is captured; may be "
        "given several times. On every device the largest BATCH is the default of "
        "--max-num-seqs.",
        parse=Bucket.parse,
        default=(),
        multiple=True,
        metavar="BATCH,LEN",
    )
    max_seq_len_to_capture: int | None = option(
        "Default of --max-model-len, the longest prompt plus answer in tokens; no bucket may be "
        "longer. The model's own limit if not given.",
        parse=parse_optional(parse_size),
        default=None,
        metavar="SIZE",
    )
    prefill_chunk_size: int | None = option(
        "Default of --prefill-chunk-size: most prompt tokens of one request in one step; the "
        "largest LEN of the prefill buckets, else no limit of its own, if not given.",
        parse=parse_optional(parse_size),
        default=None,
        metavar="SIZE",
    )
    paged_attention_num_blocks: int | None = option(
        "Default of --paged-attention-num-blocks: KV-cache blocks of each layer.",
        parse=parse_optional(parse_size),
        default=None,
        metavar="SIZE",
    )
    npu_queue_limit: int | None = option(
        "Default of --npu-queue-limit: steps in flight in a replica.",
        parse=parse_optional(int),
        default=None,
        metavar="N",
    )
    max_processing_samples: int | None = option(
        "Default of --max-processing-samples: most rows that the engine holds at once.",
        parse=parse_optional(parse_size),
        default=None,
        metavar="SIZE",
    )
    spare_blocks_ratio: float | None = option(
        "Default of --spare-blocks-ratio: share of blocks that admission leaves free.",
        parse=parse_optional(float),
        default=None,
        metavar="RATIO",
    )
    is_offline: bool | None = option(
        "Default of is_offline for LLMEngine in Python; run and bench are offline in any case "
        "unless told otherwise.",
        parse=parse_optional(parse_bool),
        default=None,
        metavar="TRUE|FALSE",
    )

    def __post_init__(self) -> None:
        if self.quantization_artifact_path is not None:
            raise ConfigError(
                f"quantization_artifact_path ({self.quantization_artifact_path}) cannot be used: "
                "quantised weights that were made elsewhere cannot be read yet; leave it out, and "
                "give --dtype bfloat16 for smaller weights, or --quantization int8"
            )
        if self.auto_bfloat16_cast and self.dtype != "auto":
            raise ConfigError(
                f"auto_bfloat16_cast and dtype {self.dtype} exclude each other; give one of them"
            )
        require_positive(self, PARALLEL_SIZES)
        self._check_devices()
        self.runtime_config()  # raises what is wrong before anything is read

    def _check_devices(self) -> None:
        """Refuses what the devices cannot hold or compute; how many GPUs there are shows later."""
        devices = parse_devices(self.devices) if self.devices is not None else ()
        kinds = {device.kind for device in devices}
        if self.quantization in GPU_QUANTIZATIONS and kinds and kinds != {"cuda"}:
            raise ConfigError(
                f"quantization {self.quantization} is for GPUs, and devices is {self.devices}; "
                "give int8, or other devices"
            )
        if devices and devices != (Device(kind="cuda"),):
            build_mesh(
                devices,
                tensor_parallel_size=self.tensor_parallel_size,
                pipeline_parallel_size=self.pipeline_parallel_size,
                data_parallel_size=self.data_parallel_size,
            )

    @property
    def target_dtype(self) -> str:
        """The type that weights are cast to, or `auto`."""
        return "bfloat16" if self.auto_bfloat16_cast else self.dtype

    def runtime_config(self) -> RuntimeConfig:
        """Returns what the artifact is loaded with by default."""
        prefill = tuple(sorted(set(self.prefill_buckets)))
        decode = tuple(sorted(set(self.decode_buckets)))
        max_num_seqs = _largest(bucket.batch_size for bucket in decode)
        num_tokens = max(
            _largest(bucket.batch_size * bucket.length for bucket in prefill) or 0,
            max_num_seqs or 0,
        )
        return RuntimeConfig(
            dtype=self.target_dtype,
            quantization=self.quantization,
            max_model_len=self.max_seq_len_to_capture,
            max_num_seqs=max_num_seqs,
            # The usual budget holds every smaller bucket.
            max_num_batched_tokens=(
                num_tokens if num_tokens > DEFAULT_MAX_NUM_BATCHED_TOKENS else None
            ),
            prefill_buckets=prefill,
            decode_buckets=decode,
            prefill_chunk_size=self.prefill_chunk_size
            if self.prefill_chunk_size is not None
            else _largest(bucket.length for bucket in prefill),
            paged_attention_num_blocks=self.paged_attention_num_blocks,
            npu_queue_limit=self.npu_queue_limit,
            max_processing_samples=self.max_processing_samples,
            spare_blocks_ratio=self.spare_blocks_ratio,
            is_offline=self.is_offline,
        )


def _largest(values: Iterable[int]) -> int | None:
    return max(values, default=None)
