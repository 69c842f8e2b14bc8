from __future__ import annotations

from typing import Any

import pytest

from furiosa_llm.config import EngineArgs
from furiosa_llm.errors import ConfigError


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("is_offline", "maybe", "is_offline must be bool or None, got 'maybe'"),
        ("data_parallel_size", True, "data_parallel_size must be int or None, got True"),
        ("data_parallel_size", "2", "data_parallel_size must be int or None, got '2'"),
        ("threads_per_replica", 1.5, "threads_per_replica must be int or None, got 1.5"),
        ("cache_dir", 5, "cache_dir must be str or None, got 5"),
        ("cache_dir", "", "cache_dir must be a folder, or None for none, got ''"),
        ("model", None, "model must be str, got None"),
        ("data_parallel_size", 10**9, "data_parallel_size must be at most 1024"),
        ("tensor_parallel_size", 0, "tensor_parallel_size must be at least 1, got 0"),
        ("devices", "npu:0:1-2", "npu:0:1-2"),
    ],
)
def test_a_wrong_value_is_refused_with_its_name(option: str, value: Any, message: str) -> None:
    options: dict[str, Any] = {"model": "m", option: value}

    with pytest.raises(ConfigError) as refusal:
        EngineArgs(**options)

    assert message in str(refusal.value)


def test_a_whole_number_will_do_where_a_ratio_is_wanted() -> None:
    assert EngineArgs(model="m", spare_blocks_ratio=0).spare_blocks_ratio == 0


@pytest.mark.parametrize(
    ("changes", "on_cpu", "on_gpu"),
    [
        ({}, "float32", "auto"),
        ({"dtype": "bfloat16"}, "bfloat16", "bfloat16"),
        ({"quantization": "int8", "dtype": "bfloat16"}, "float32", "bfloat16"),
    ],
)
def test_the_type_is_float32_on_a_cpu_unless_another_can_be_had(
    changes: dict[str, Any], on_cpu: str, on_gpu: str
) -> None:
    args = EngineArgs(model="m", **changes)

    assert (args.dtype_on("cpu"), args.dtype_on("cuda")) == (on_cpu, on_gpu)
