"""What the user asked for (`EngineArgs`), and the decided values that the engine runs by."""

from __future__ import annotations

import argparse
import dataclasses
from dataclasses import dataclass

from furiosa_llm.errors import ConfigError
from furiosa_llm.options import add_arguments, option, parse_bool, parse_optional, parse_size

DTYPES = ("auto", "float32", "bfloat16", "float16")
TOKENIZER_MODES = ("auto", "slow")
BLOCK_SIZES = (16, 32, 64, 128, 256)


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineArgs:
    """The engine's options as a user gives them; `None` leaves the choice to the engine.

    Raises:
        ConfigError: A value is out of range.
    """

    model: str = option("A checkpoint folder in Hugging Face layout, or a hub id.", metavar="MODEL")
    tokenizer: str | None = option(
        "Name or path of a Hugging Face tokenizer; the model's own if not given.", default=None
    )
    tokenizer_mode: str = option(
        "auto: the fast tokenizer if there is one; slow: always the slow one.",
        default="auto",
        choices=TOKENIZER_MODES,
    )
    dtype: str = option(
        "Type of weights and activations; auto is float32 on a CPU.", default="auto", choices=DTYPES
    )
    seed: int = option("Seed of every random draw.", parse=int, default=0)
    max_model_len: int | None = option(
        "Longest prompt plus answer, in tokens; the model's own limit if not given.",
        parse=parse_optional(parse_size),
        default=None,
        metavar="SIZE",
    )
    max_num_seqs: int = option(
        "Most requests that run at once.", parse=parse_size, default=256, metavar="SIZE"
    )
    max_num_batched_tokens: int = option(
        "Most tokens in one step.", parse=parse_size, default=1024, metavar="SIZE"
    )
    paged_attention_num_blocks: int | None = option(
        "KV-cache blocks of each layer; chosen from free memory if not given.",
        parse=parse_optional(parse_size),
        default=None,
        metavar="SIZE",
    )
    paged_attention_block_size: int = option(
        "Tokens in a KV-cache block: 16, 32, 64, 128 or 256.", parse=parse_size, default=32
    )
    enable_prefix_caching: bool = option(
        "Keep blocks of finished requests for others that start alike.", default=True, is_flag=True
    )
    max_processing_samples: int = option(
        "Most rows that the engine holds at once.", parse=parse_size, default=65536, metavar="SIZE"
    )
    spare_blocks_ratio: float | None = option(
        "Share of blocks that admission leaves free for running requests to grow into; "
        "0 offline and 0.2 online if not given.",
        parse=parse_optional(float),
        default=None,
        metavar="RATIO",
    )
    is_offline: bool = option(
        "Order the work for throughput, with no one waiting for a single answer.",
        parse=parse_bool,
        default=False,
    )
    trust_remote_code: bool = option(
        "Run Python code that comes with the checkpoint.", default=False, is_flag=True
    )

    def __post_init__(self) -> None:
        for name in ("max_num_seqs", "max_num_batched_tokens", "max_processing_samples"):
            _require_at_least_one(name, getattr(self, name))
        for name in ("max_model_len", "paged_attention_num_blocks"):
            if getattr(self, name) is not None:
                _require_at_least_one(name, getattr(self, name))
        if self.max_num_batched_tokens < self.max_num_seqs:
            raise ConfigError(
                f"max_num_batched_tokens ({self.max_num_batched_tokens}) must be at least "
                f"max_num_seqs ({self.max_num_seqs}), so that every running request can have one "
                "token in a step"
            )
        ratio = self.spare_blocks_ratio
        if ratio is not None and not 0 <= ratio < 1:
            raise ConfigError(f"spare_blocks_ratio must be in [0, 1), got {ratio}")
        _require_one_of("dtype", self.dtype, DTYPES)
        _require_one_of("tokenizer_mode", self.tokenizer_mode, TOKENIZER_MODES)
        _require_one_of("paged_attention_block_size", self.paged_attention_block_size, BLOCK_SIZES)

    @classmethod
    def add_cli_args(cls, parser: argparse.ArgumentParser) -> argparse.ArgumentParser:
        """Adds every option to an argparse parser and returns it."""
        return add_arguments(cls, parser)

    @classmethod
    def from_cli_args(cls, args: argparse.Namespace) -> EngineArgs:
        """Takes the options from a parsed namespace, which may hold other names too."""
        names = [field.name for field in dataclasses.fields(cls)]
        return cls(**{name: getattr(args, name) for name in names})


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelInfo:
    """What the engine has to know of a model.

    Attributes:
        max_model_len: Longest prompt plus answer, in tokens.
        vocab_size: Length of its logits.
        eos_token_ids: Tokens that end an answer.
    """

    max_model_len: int
    vocab_size: int
    eos_token_ids: frozenset[int]


@dataclass(frozen=True, slots=True, kw_only=True)
class CacheConfig:
    """The paged KV cache: `num_blocks` blocks of `block_size` tokens in every layer."""

    num_blocks: int
    block_size: int
    enable_prefix_caching: bool = True

    def num_blocks_for(self, num_tokens: int) -> int:
        """Returns how many blocks hold `num_tokens` tokens."""
        return -(-num_tokens // self.block_size)


@dataclass(frozen=True, slots=True, kw_only=True)
class SchedulerConfig:
    """The limits that each step keeps, and the strategy by which it is filled."""

    max_model_len: int
    max_num_seqs: int = 256
    max_num_batched_tokens: int = 1024
    max_processing_samples: int = 65536
    spare_blocks_ratio: float = 0.0
    is_offline: bool = False

    @classmethod
    def from_engine_args(cls, args: EngineArgs, *, max_model_len: int) -> SchedulerConfig:
        """Decides what the arguments left open."""
        ratio = args.spare_blocks_ratio
        if ratio is None:
            ratio = 0.0 if args.is_offline else 0.2
        return cls(
            max_model_len=max_model_len,
            max_num_seqs=args.max_num_seqs,
            max_num_batched_tokens=args.max_num_batched_tokens,
            max_processing_samples=args.max_processing_samples,
            spare_blocks_ratio=ratio,
            is_offline=args.is_offline,
        )


def _require_at_least_one(name: str, value: int) -> None:
    if value < 1:
        raise ConfigError(f"{name} must be at least 1, got {value}")


def _require_one_of(name: str, value: object, allowed: tuple[object, ...]) -> None:
    if value not in allowed:
        raise ConfigError(f"{name} must be one of {', '.join(map(str, allowed))}, got {value!r}")
