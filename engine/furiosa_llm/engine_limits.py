"""What an engine was built for, with every value decided."""

from __future__ import annotations

from dataclasses import dataclass

from furiosa_llm.scheduler_config import SchedulerConfig


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
class EngineLimits:
    """The model, its KV cache, and how its steps are filled. Every replica has the same.

    Attributes:
        scheduler_config: The limits of each step.
        cache_config: The blocks.
        model_info: What ends an answer.
        favours_decodes: Whether a step that reads no prompt is much quicker than its share of
            others, as one that is replayed as a graph.
    """

    scheduler_config: SchedulerConfig
    cache_config: CacheConfig
    model_info: ModelInfo
    favours_decodes: bool = False

    @property
    def longest_sequence(self) -> int:
        """Tokens that one request can have: the context, or the whole cache if that is less."""
        cache = self.cache_config
        return min(self.model_info.max_model_len, cache.num_blocks * cache.block_size)
