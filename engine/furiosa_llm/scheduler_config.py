"""The scheduler's limits and strategy, with every value decided."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path

from furiosa_llm.config import DEFAULT_MAX_NUM_BATCHED_TOKENS, DEFAULT_MAX_NUM_SEQS, EngineArgs
from furiosa_llm.config_checks import require_positive, require_ratio, require_room_for_each
from furiosa_llm.errors import ConfigError

_COUNTS = (
    "npu_queue_limit",
    "max_processing_samples",
    "prefill_chunk_size",
    "max_num_seqs",
    "max_num_batched_tokens",
)
_TYPES: dict[str, tuple[type, ...]] = {
    "int": (int,),
    "int | None": (int, type(None)),
    "float": (int, float),
    "bool": (bool,),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class SchedulerConfig:
    """The limits that each step keeps, and the strategy by which it is filled.

    Attributes:
        npu_queue_limit: Steps in flight: 1 schedules and runs in turn, 2 prepares the next step
            while the device runs this one.
        max_processing_samples: Most prompts that the engine holds at once.
        spare_blocks_ratio: Share of blocks that admission leaves free for running requests.
        is_offline: Whether to order the work for throughput.
        prefill_chunk_size: Most prompt tokens of one request in one step; None for no limit.
        max_num_seqs: Most requests that run at once.
        max_num_batched_tokens: Most tokens in one step.

    Raises:
        ConfigError: A value is of another type or out of range.
    """

    npu_queue_limit: int = 2
    max_processing_samples: int = 65536
    spare_blocks_ratio: float = 0.0
    is_offline: bool = False
    prefill_chunk_size: int | None = None
    max_num_seqs: int = DEFAULT_MAX_NUM_SEQS
    max_num_batched_tokens: int = DEFAULT_MAX_NUM_BATCHED_TOKENS

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value, wanted = getattr(self, field.name), _TYPES[str(field.type)]
            if not isinstance(value, wanted) or (isinstance(value, bool) and bool not in wanted):
                raise ConfigError(f"{field.name} must be {field.type}, got {value!r}")
        require_positive(self, _COUNTS)
        require_ratio(self.spare_blocks_ratio)
        require_room_for_each(self.max_num_batched_tokens, self.max_num_seqs)

    @classmethod
    def from_engine_args(cls, args: EngineArgs) -> SchedulerConfig:
        """Decides what the arguments left open."""
        is_offline = bool(args.is_offline)
        ratio = args.spare_blocks_ratio
        if ratio is None:
            ratio = _spare_blocks_ratio(is_offline)
        return cls(
            npu_queue_limit=args.npu_queue_limit or max(2, args.pipeline_parallel_size or 1),
            max_processing_samples=args.max_processing_samples or 65536,
            spare_blocks_ratio=ratio,
            is_offline=is_offline,
            prefill_chunk_size=args.prefill_chunk_size,
            max_num_seqs=args.max_num_seqs or DEFAULT_MAX_NUM_SEQS,
            max_num_batched_tokens=args.max_num_batched_tokens or DEFAULT_MAX_NUM_BATCHED_TOKENS,
        )

    def export(self, path: str | Path) -> None:
        """Writes the configuration as JSON, for `load` to read."""
        Path(path).write_text(json.dumps(dataclasses.asdict(self), indent=2) + "\n", "utf-8")

    @classmethod
    def load(cls, path: str | Path) -> SchedulerConfig:
        """Reads a configuration that `export` wrote; names that are left out have their defaults.

        That of `spare_blocks_ratio` is the one of `EngineArgs`.

        Raises:
            ConfigError: The file is missing, is not JSON, or holds an unknown name or wrong value.
        """
        try:
            content = json.loads(Path(path).read_text("utf-8"))
        except (OSError, ValueError) as error:
            raise ConfigError(f"{path}: cannot be read as JSON: {error}") from error
        if not isinstance(content, dict):
            raise ConfigError(f"{path}: must hold names and values, got {str(content)[:80]!r}")
        known = sorted(field.name for field in dataclasses.fields(cls))
        for name in content:
            if name not in known:
                raise ConfigError(f"{path}: unknown name {name!r}; known are {', '.join(known)}")
        content.setdefault("spare_blocks_ratio", _spare_blocks_ratio(content.get("is_offline")))
        try:
            return cls(**content)
        except ConfigError as error:
            raise ConfigError(f"{path}: {error}") from error


def _spare_blocks_ratio(is_offline: object) -> float:
    return 0.0 if is_offline else 0.2
