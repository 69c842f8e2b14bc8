"""What an artifact says of itself: the model, its files, and the options it is loaded with."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field

from furiosa_llm.config import DTYPES, QUANTIZATIONS
from furiosa_llm.config_checks import require_positive, require_ratio, require_room_for_each
from furiosa_llm.errors import ConfigError

FORMAT = "furiosa-llm-artifact"
VERSION = 1
ARTIFACT_FILE = "artifact.json"
RUNTIME_FILE = "runtime_config.json"

_POSITIVE = (
    "max_model_len",
    "max_num_seqs",
    "max_num_batched_tokens",
    "prefill_chunk_size",
    "paged_attention_num_blocks",
    "npu_queue_limit",
    "max_processing_samples",
)
PARALLEL_SIZES = ("tensor_parallel_size", "pipeline_parallel_size", "data_parallel_size")


@dataclass(frozen=True, slots=True, order=True)
class Bucket:
    """The shape of a step that a graph is captured for on a GPU.

    Attributes:
        batch_size: Requests in the step.
        length: Tokens of each: new ones of a prompt, or those that an answer looks back on.
    """

    batch_size: int
    length: int

    def __post_init__(self) -> None:
        if self.batch_size < 1 or self.length < 1:
            raise ConfigError(f"batch and length of a bucket must be at least 1, got {self}")

    @classmethod
    def parse(cls, text: str) -> Bucket:
        """Reads `BATCH,LEN`.

        Raises:
            ValueError: It is something else.
        """
        batch_size, _, length = text.partition(",")
        try:
            return cls(int(batch_size), int(length))
        except ConfigError:
            raise
        except ValueError as error:
            raise ValueError(
                f"{text!r} is not a bucket; write BATCH,LEN, for example 4,256"
            ) from error

    def __str__(self) -> str:
        return f"{self.batch_size},{self.length}"


@dataclass(frozen=True, slots=True, kw_only=True)
class RuntimeConfig:
    """The options that an artifact is loaded with, unless others are given.

    None leaves the choice to the engine. The names are those of `EngineArgs`.

    Attributes:
        prefill_buckets: Shapes of steps that read prompts.
        decode_buckets: Shapes of steps that continue answers.

    Raises:
        ConfigError: A value is out of range, or two do not go together.
    """

    dtype: str = "auto"
    quantization: str | None = None
    max_model_len: int | None = None
    max_num_seqs: int | None = None
    max_num_batched_tokens: int | None = None
    prefill_buckets: tuple[Bucket, ...] = ()
    decode_buckets: tuple[Bucket, ...] = ()
    prefill_chunk_size: int | None = None
    paged_attention_num_blocks: int | None = None
    npu_queue_limit: int | None = None
    max_processing_samples: int | None = None
    spare_blocks_ratio: float | None = None
    is_offline: bool | None = None

    def __post_init__(self) -> None:
        require_positive(self, _POSITIVE)
        if self.spare_blocks_ratio is not None:
            require_ratio(self.spare_blocks_ratio)
        if self.dtype not in DTYPES:
            raise ConfigError(f"dtype must be one of {', '.join(DTYPES)}, got {self.dtype!r}")
        if self.quantization not in (None, *QUANTIZATIONS):
            raise ConfigError(
                f"quantization must be one of {', '.join(QUANTIZATIONS)}, got {self.quantization!r}"
            )
        require_room_for_each(self.max_num_batched_tokens, self.max_num_seqs)
        if self.max_model_len is not None:
            self.require_buckets_within(self.max_model_len, "max_seq_len_to_capture")

    def require_buckets_within(self, max_length: int, limit_name: str) -> None:
        """Refuses buckets that no sequence can fill.

        Raises:
            ConfigError: One is longer than the limit.
        """
        for kind, buckets in (("prefill", self.prefill_buckets), ("decode", self.decode_buckets)):
            for bucket in buckets:
                if bucket.length > max_length:
                    raise ConfigError(
                        f"the {kind} bucket {bucket} is longer than {limit_name} ({max_length}); "
                        "shorten the bucket"
                    )


@dataclass(frozen=True, slots=True, kw_only=True)
class ArtifactFile:
    """A file of an artifact, as it was written.

    Attributes:
        name: Path in the folder, with `/`.
        num_bytes: Its size.
        hash: Of its content; see `new_digest`.
    """

    name: str
    num_bytes: int
    hash: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Artifact:
    """A model in a folder that knows how it is to be run.

    Attributes:
        name: What it is called.
        model: Path of the checkpoint that it was made from, or hub id, with `@` and the revision.
        architecture: Class of the model, as `LlamaForCausalLM`.
        dtype: Type of most of the weights.
        num_parameters: Elements of all weights.
        num_weight_bytes: What they take.
        devices: Where to run, as it was given; None leaves the choice to the engine.
        program_version: Of the program that wrote it; None from a checkout.
        created_at: ISO 8601, UTC.
        runtime: The options that it is loaded with.
        files: Everything in the folder but `artifact.json`.

    Raises:
        ConfigError: A parallel size is out of range.
    """

    name: str
    model: str
    architecture: str
    dtype: str
    num_parameters: int
    num_weight_bytes: int
    devices: str | None = None
    tensor_parallel_size: int | None = None
    pipeline_parallel_size: int | None = None
    data_parallel_size: int | None = None
    program_version: str | None = None
    created_at: str = ""
    runtime: RuntimeConfig = field(default_factory=RuntimeConfig)
    files: tuple[ArtifactFile, ...] = ()

    def __post_init__(self) -> None:
        require_positive(self, PARALLEL_SIZES)

    @property
    def num_bytes(self) -> int:
        """Size of all files."""
        return sum(file.num_bytes for file in self.files)

    def to_json(self) -> dict[str, object]:
        """Returns the content of `artifact.json`; the options stand in a file of their own."""
        values = dataclasses.asdict(self)
        del values["runtime"]
        return {"format": FORMAT, "version": VERSION, **values}


def runtime_json(runtime: RuntimeConfig) -> dict[str, object]:
    """Returns the content of `runtime_config.json`."""
    values = dataclasses.asdict(runtime)
    for name in ("prefill_buckets", "decode_buckets"):
        values[name] = [[entry.batch_size, entry.length] for entry in getattr(runtime, name)]
    return values
