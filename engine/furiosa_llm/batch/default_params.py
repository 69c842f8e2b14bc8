"""Checks the parameters of rows that bring none."""

from __future__ import annotations

from furiosa_llm.errors import ConfigError, RequestError
from furiosa_llm.llm_engine import LLMEngine
from furiosa_llm.sampling_params import SamplingParams


def check_params(engine: LLMEngine, params: SamplingParams) -> None:
    """Refuses parameters that would fail every row, before any row is read.

    Raises:
        ConfigError: They do not go with the model, or leave no room for a prompt.
    """
    try:
        engine.check_params(params)
    except RequestError as error:
        raise ConfigError(str(error)) from error
    max_model_len = engine.limits.model_info.max_model_len
    if not params.fits_context and (params.max_tokens or 0) >= max_model_len:
        raise ConfigError(
            f"--max-tokens {params.max_tokens} leaves no room for a prompt in a context of "
            f"{max_model_len} tokens; lower it, or give none for what a prompt leaves"
        )
