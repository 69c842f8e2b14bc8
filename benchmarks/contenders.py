"""Who is measured: engines, their precisions, and the settings that help each with a workload."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path

from benchmarks.environments import python_of
from benchmarks.models import Models
from benchmarks.processes import ROOT
from furiosa_llm import EngineArgs

EVERYWHERE = "*"
OURS = "furiosa-llm"


@dataclass(frozen=True, slots=True, kw_only=True)
class Contender:
    """An engine in one precision.

    Attributes:
        key: What the command line calls it.
        engine: Its name.
        precision: Of its matrix products, and of its weights where that differs.
        driver: Module under `benchmarks.drivers`; a peer's environment has the same name.
        gguf_type: Type of the GGUF file that it reads; None if it reads the checkpoint.
        settings: Options of the driver by workload; `*` stands for those that are not named.
        variables: Environment variables that it needs.
        max_rounds: Rounds that are enough, where it is far behind.
        features: What the processor must have, by LLVM's names; it is left out elsewhere.
    """

    key: str
    engine: str
    precision: str
    driver: str
    gguf_type: str | None = None
    settings: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    variables: Mapping[str, str] = field(default_factory=dict)
    max_rounds: int | None = None
    features: tuple[str, ...] = ()

    @property
    def is_ours(self) -> bool:
        """Whether it is the engine of this project."""
        return self.engine == OURS

    def settings_for(self, workload: str) -> tuple[str, ...]:
        """Returns the driver's options."""
        return self.settings.get(workload, self.settings.get(EVERYWHERE, ()))

    def python(self, environments: Path) -> Path | None:
        """Returns the interpreter to run it with; None if it is not installed."""
        if self.driver in ("furiosa", "transformers"):
            return Path(sys.executable)
        return python_of(self.driver, environments)

    def model_path(self, models: Models, shape: str) -> Path:
        """Returns the checkpoint or file that it reads, made if it is not there yet."""
        if self.gguf_type is None:
            return models.checkpoint(shape)
        return models.gguf(shape, self.gguf_type)


def own_variables() -> dict[str, str]:
    """Returns the variables by which a process finds this working tree."""
    return {"PYTHONPATH": f"{ROOT / 'engine'}:{ROOT}"}


def ours(precision: str, *settings: str, key: str = "furiosa") -> Contender:
    """Returns our engine with some options, as `data_parallel_size=2`."""
    chosen = (*settings, *(("quantization=int8",) if precision == "int8" else ()))
    return Contender(
        key=f"{key}-{precision}",
        engine=OURS,
        precision=precision,
        driver="furiosa",
        settings={EVERYWHERE: tuple(word for entry in chosen for word in ("--set", entry))},
        variables=own_variables(),
    )


def precisions() -> tuple[str, ...]:
    """Returns the precisions that our engine knows."""
    has_int8 = "quantization" in {entry.name for entry in fields(EngineArgs)}
    return ("float32", "int8") if has_int8 else ("float32",)


_OPENVINO: dict[str, tuple[str, ...]] = {
    EVERYWHERE: ("--max-num-batched-tokens", "1024"),
    "shared-prefix": ("--max-num-batched-tokens", "1024", "--prefix-caching"),
}
# What OpenVINO computes in unless it is told otherwise, on processors that multiply such numbers.
_BFLOAT16 = ("--precision", "bf16", "--kv-cache-precision", "bf16")
_LLAMA_CPP = {
    EVERYWHERE: ("--parallel", "16"),
    "shared-prefix": ("--parallel", "64", "--prefix-caching"),
    "classification": ("--parallel", "32"),
}
_VLLM = {EVERYWHERE: ("--eager",), "shared-prefix": ("--eager", "--prefix-caching")}

PEERS = (
    Contender(
        key="openvino-float32",
        engine="OpenVINO GenAI",
        precision="float32 (float16 weights)",
        driver="openvino",
        gguf_type="f16",
        settings=_OPENVINO,
    ),
    Contender(
        key="openvino-bfloat16",
        engine="OpenVINO GenAI",
        precision="bfloat16 (float16 weights)",
        driver="openvino",
        gguf_type="f16",
        settings={name: (*options, *_BFLOAT16) for name, options in _OPENVINO.items()},
        features=("avx512bf16",),
    ),
    Contender(
        key="openvino-int8",
        engine="OpenVINO GenAI",
        precision="int8 (Q8_0)",
        driver="openvino",
        gguf_type="q8_0",
        settings=_OPENVINO,
    ),
    Contender(
        key="llama-cpp-float32",
        engine="llama.cpp",
        precision="float32",
        driver="llama_cpp",
        gguf_type="f32",
        settings=_LLAMA_CPP,
        max_rounds=1,
    ),
    Contender(
        key="llama-cpp-int8",
        engine="llama.cpp",
        precision="int8 (Q8_0)",
        driver="llama_cpp",
        gguf_type="q8_0",
        settings=_LLAMA_CPP,
        max_rounds=1,
    ),
    Contender(
        key="vllm-float32",
        engine="vLLM",
        precision="float32",
        driver="vllm",
        settings=_VLLM,
        variables={"VLLM_CPU_KVCACHE_SPACE": "4", "VLLM_LOGGING_LEVEL": "ERROR"},
        max_rounds=1,
    ),
    Contender(
        key="transformers-float32",
        engine="transformers generate",
        precision="float32",
        driver="transformers",
        max_rounds=1,
    ),
)
