from __future__ import annotations

import argparse
import dataclasses
import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from furiosa_llm.artifact.contents import RuntimeConfig
from furiosa_llm.artifact.defaults import resolve_engine_args
from furiosa_llm.config import EngineArgs
from furiosa_llm.errors import ConfigError, ModelLoadError
from furiosa_llm.scheduler_config import SchedulerConfig
from tests.unit.artifact.artifact_factories import write_artifact

OF_ARTIFACT: dict[str, Any] = {
    "devices": st.sampled_from(["cpu", "npu:0"]),
    "tensor_parallel_size": st.integers(1, 8),
    "pipeline_parallel_size": st.integers(1, 4),
    "data_parallel_size": st.integers(1, 4),
}
OF_RUNTIME: dict[str, Any] = {
    "quantization": st.just("int8"),
    "max_model_len": st.integers(1, 9999),
    "max_num_seqs": st.integers(1, 512),
    "max_num_batched_tokens": st.integers(512, 4096),
    "prefill_chunk_size": st.integers(1, 9999),
    "paged_attention_num_blocks": st.integers(1, 9999),
    "npu_queue_limit": st.integers(1, 4),
    "max_processing_samples": st.integers(1, 9999),
    "spare_blocks_ratio": st.floats(0, 0.99),
    "is_offline": st.booleans(),
}
DTYPES = st.sampled_from(["auto", "float32", "bfloat16", "float16"])


def some_of(values: dict[str, Any]) -> st.SearchStrategy[dict[str, Any]]:
    return st.fixed_dictionaries({}, optional=values)


@settings(max_examples=60)
@given(
    given_options=some_of({**OF_ARTIFACT, **OF_RUNTIME, "dtype": DTYPES}),
    own=some_of(OF_ARTIFACT),
    runtime=some_of({**OF_RUNTIME, "dtype": DTYPES}),
)
def test_what_is_given_wins_then_the_artifact_then_the_default(
    given_options: dict[str, Any], own: dict[str, Any], runtime: dict[str, Any]
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        write_artifact(Path(folder), RuntimeConfig(**runtime), **own)
        args = EngineArgs(model=folder, **given_options)

        resolved = resolve_engine_args(args)

        expected = {**dataclasses.asdict(EngineArgs(model=folder)), **own, **runtime}
        expected.update(given_options)
        if given_options.get("dtype") == "auto":
            expected["dtype"] = runtime.get("dtype", "auto")
        assert dataclasses.asdict(resolved) == expected
        assert resolve_engine_args(resolved) == resolved
        SchedulerConfig.from_engine_args(resolved)


def test_the_options_of_anything_but_an_artifact_stay_as_they_are(tmp_path: Path) -> None:
    args = EngineArgs(model=str(tmp_path))
    assert resolve_engine_args(args) is args


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("devices", "npu:0"),
        ("tensor_parallel_size", 4),
        ("quantization", "int8"),
        ("max_model_len", 64),
        ("prefill_chunk_size", 16),
        ("is_offline", True),
    ],
)
def test_what_is_given_as_none_is_left_to_the_engine(
    name: str, value: object, tmp_path: Path
) -> None:
    own: dict[str, Any] = {name: value}
    if name in OF_RUNTIME:
        write_artifact(tmp_path, RuntimeConfig(**own), data_parallel_size=2)
    else:
        write_artifact(tmp_path, data_parallel_size=2, **own)
    parser = EngineArgs.add_cli_args(argparse.ArgumentParser())
    flag = "--" + name.replace("_", "-")
    namespace = parser.parse_args(["--model", str(tmp_path), flag, "none"])
    told = EngineArgs(model=str(tmp_path), left_open=(name,))

    for args in (EngineArgs.from_cli_args(namespace), told):
        resolved = resolve_engine_args(args)
        assert getattr(resolved, name) is None
        assert resolved.data_parallel_size == 2
        assert resolve_engine_args(resolved) == resolved
    assert getattr(resolve_engine_args(EngineArgs(model=str(tmp_path))), name) == value


def test_only_options_can_be_left_open() -> None:
    with pytest.raises(ConfigError, match="left_open must name engine options, got 'max_len'"):
        EngineArgs(model="m", left_open=("max_len",))


def test_sizes_that_no_one_gave_are_256_requests_and_1024_tokens() -> None:
    config = SchedulerConfig.from_engine_args(EngineArgs(model="m"))

    assert (config.max_num_seqs, config.max_num_batched_tokens) == (256, 1024)


def test_a_given_size_must_go_with_the_artifacts(tmp_path: Path) -> None:
    write_artifact(tmp_path / "a", RuntimeConfig(max_num_seqs=64))

    with pytest.raises(ConfigError, match=r"max_num_batched_tokens \(32\) .* max_num_seqs \(64\)"):
        resolve_engine_args(EngineArgs(model=str(tmp_path / "a"), max_num_batched_tokens=32))


def test_a_given_size_must_go_with_the_default() -> None:
    with pytest.raises(ConfigError, match=r"max_num_batched_tokens \(64\) .* max_num_seqs \(256\)"):
        SchedulerConfig.from_engine_args(EngineArgs(model="m", max_num_batched_tokens=64))


def test_an_artifact_that_lost_its_description_is_no_plain_checkpoint(tmp_path: Path) -> None:
    write_artifact(tmp_path / "a")
    (tmp_path / "a" / "artifact.json").unlink()

    with pytest.raises(ModelLoadError, match=r"artifact\.json: is missing"):
        resolve_engine_args(EngineArgs(model=str(tmp_path / "a")))
