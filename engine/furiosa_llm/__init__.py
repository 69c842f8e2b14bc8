"""Offline batch inference for large language models.

Importing this package is cheap: names that need torch load when they are first used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

from furiosa_llm.config import EngineArgs
from furiosa_llm.errors import (
    ConfigError,
    DatasetError,
    EngineError,
    FuriosaLLMError,
    InvalidParamsError,
    InvalidRowError,
    ModelLoadError,
    NeverFitsError,
    PromptTooLongError,
    RequestError,
)
from furiosa_llm.outputs import (
    CompletionOutput,
    Logprob,
    RequestMetrics,
    RequestOutput,
    StepStats,
)
from furiosa_llm.sampling_params import RequestOutputKind, SamplingParams
from furiosa_llm.scheduler_config import SchedulerConfig
from furiosa_llm.structured_outputs import StructuredOutputs

if TYPE_CHECKING:
    from furiosa_llm.async_llm_engine import AsyncLLMEngine
    from furiosa_llm.batch.job import BatchJob
    from furiosa_llm.batch.run import run_batch_job
    from furiosa_llm.batch.summary import BatchSummary
    from furiosa_llm.llm import LLM
    from furiosa_llm.llm_engine import LLMEngine

__all__ = [
    "LLM",
    "AsyncLLMEngine",
    "BatchJob",
    "BatchSummary",
    "CompletionOutput",
    "ConfigError",
    "DatasetError",
    "EngineArgs",
    "EngineError",
    "FuriosaLLMError",
    "InvalidParamsError",
    "InvalidRowError",
    "LLMEngine",
    "Logprob",
    "ModelLoadError",
    "NeverFitsError",
    "PromptTooLongError",
    "RequestError",
    "RequestMetrics",
    "RequestOutput",
    "RequestOutputKind",
    "SamplingParams",
    "SchedulerConfig",
    "StepStats",
    "StructuredOutputs",
    "run_batch_job",
]

_LAZY_MODULES = {
    "LLM": "furiosa_llm.llm",
    "AsyncLLMEngine": "furiosa_llm.async_llm_engine",
    "BatchJob": "furiosa_llm.batch.job",
    "BatchSummary": "furiosa_llm.batch.summary",
    "LLMEngine": "furiosa_llm.llm_engine",
    "run_batch_job": "furiosa_llm.batch.run",
}


if not TYPE_CHECKING:  # out of mypy's sight, so that it still finds a misspelt import

    def __getattr__(name: str) -> object:
        if name not in _LAZY_MODULES:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        return getattr(importlib.import_module(_LAZY_MODULES[name]), name)

    def __dir__() -> list[str]:
        return sorted({*globals(), *__all__})
