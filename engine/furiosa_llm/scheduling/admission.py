"""Whether a prompt can ever be answered."""

from __future__ import annotations

from furiosa_llm.engine_limits import CacheConfig
from furiosa_llm.errors import NeverFitsError, PromptTooLongError


def check_fits(
    *, num_prompt_tokens: int, max_tokens: int, max_model_len: int, cache_config: CacheConfig
) -> None:
    """Refuses a prompt that could not be answered even if it had the engine to itself.

    Raises:
        PromptTooLongError: Prompt and answer exceed the context.
        NeverFitsError: They exceed the whole KV cache.
    """
    num_tokens = num_prompt_tokens + max_tokens
    if num_tokens > max_model_len:
        raise PromptTooLongError.of_tokens(
            num_prompt_tokens=num_prompt_tokens,
            max_tokens=max_tokens,
            max_model_len=max_model_len,
        )
    num_needed_blocks = cache_config.num_blocks_for(num_tokens)
    if num_needed_blocks > cache_config.num_blocks:
        raise NeverFitsError.of_tokens(
            num_tokens=num_tokens,
            num_needed_blocks=num_needed_blocks,
            num_blocks=cache_config.num_blocks,
        )
