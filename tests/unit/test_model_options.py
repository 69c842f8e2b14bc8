from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch

from furiosa_llm.artifact.contents import RuntimeConfig
from furiosa_llm.artifact.defaults import resolve_engine_args
from furiosa_llm.config import EngineArgs
from furiosa_llm.errors import ConfigError
from furiosa_llm.execution.model_options import refuse_unserved_options
from tests.unit.artifact.artifact_factories import write_artifact

CPU, GPU = torch.device("cpu"), torch.device("cuda:0")


def test_another_type_beside_8_bits_is_refused_on_a_cpu() -> None:
    args = EngineArgs(model="m", quantization="int8", dtype="bfloat16")

    refuse_unserved_options(args, GPU, is_split=False)
    with pytest.raises(ConfigError, match="dtype bfloat16 does not go with quantization int8"):
        refuse_unserved_options(args, CPU, is_split=False)


@pytest.mark.parametrize("dtype", ["auto", "float32"])
def test_the_type_that_is_used_anyhow_may_be_given(dtype: str) -> None:
    args = EngineArgs(model="m", quantization="int8", dtype=dtype)

    refuse_unserved_options(args, CPU, is_split=False)


def test_the_type_that_an_artifact_was_built_with_was_not_asked_for(tmp_path: Path) -> None:
    write_artifact(tmp_path, RuntimeConfig(dtype="bfloat16"))
    args = EngineArgs(model=str(tmp_path), quantization="int8")
    asked = resolve_engine_args(dataclasses.replace(args, dtype="float16"))

    refuse_unserved_options(resolve_engine_args(args), CPU, is_split=False)
    with pytest.raises(ConfigError, match="dtype float16 does not go with quantization int8"):
        refuse_unserved_options(asked, CPU, is_split=False)
