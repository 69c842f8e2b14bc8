from __future__ import annotations

import dataclasses
import json
import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from furiosa_llm.config import EngineArgs
from furiosa_llm.errors import ConfigError
from furiosa_llm.scheduler_config import SchedulerConfig

COUNTS = st.integers(1, 2**40)


@given(
    config=st.builds(
        SchedulerConfig,
        npu_queue_limit=COUNTS,
        max_processing_samples=COUNTS,
        spare_blocks_ratio=st.floats(0, 1, exclude_max=True),
        is_offline=st.booleans(),
        prefill_chunk_size=st.none() | COUNTS,
        max_num_seqs=st.integers(1, 2**20),
        max_num_batched_tokens=st.integers(2**20, 2**40),
    )
)
def test_what_was_exported_is_loaded(config: SchedulerConfig) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "scheduler.json"
        config.export(path)

        assert SchedulerConfig.load(str(path)) == config


def test_the_file_holds_every_name_as_json(tmp_path: Path) -> None:
    path = tmp_path / "scheduler.json"

    SchedulerConfig(prefill_chunk_size=128).export(str(path))

    assert json.loads(path.read_text()) == {
        "npu_queue_limit": 2,
        "max_processing_samples": 65536,
        "spare_blocks_ratio": 0.0,
        "is_offline": False,
        "prefill_chunk_size": 128,
        "max_num_seqs": 256,
        "max_num_batched_tokens": 1024,
    }


def test_names_that_are_left_out_have_their_defaults(tmp_path: Path) -> None:
    path = tmp_path / "scheduler.json"
    path.write_text('{"is_offline": true}')

    assert SchedulerConfig.load(path) == SchedulerConfig(is_offline=True)

    path.write_text("{}")

    assert SchedulerConfig.load(path) == SchedulerConfig(spare_blocks_ratio=0.2)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "cannot be read as JSON: Expecting value"),
        (b"{", "cannot be read as JSON: Expecting property name"),
        (b"\xff\xfe", "cannot be read as JSON: 'utf-8' codec can't decode"),
        (b"[1, 2]", r"must hold names and values, got '\[1, 2\]'"),
        (b'{"npu_queue_limits": 2}', "unknown name 'npu_queue_limits'; known are is_offline, max"),
        (b'{"npu_queue_limit": "2"}', "npu_queue_limit must be int, got '2'"),
        (b'{"npu_queue_limit": 2.0}', "npu_queue_limit must be int, got 2.0"),
        (b'{"npu_queue_limit": true}', "npu_queue_limit must be int, got True"),
        (b'{"npu_queue_limit": null}', "npu_queue_limit must be int, got None"),
        (b'{"npu_queue_limit": 0}', "npu_queue_limit must be at least 1, got 0"),
        (b'{"prefill_chunk_size": "big"}', r"prefill_chunk_size must be int \| None, got 'big'"),
        (b'{"is_offline": 1}', "is_offline must be bool, got 1"),
        (b'{"spare_blocks_ratio": false}', "spare_blocks_ratio must be float, got False"),
        (b'{"spare_blocks_ratio": 1}', r"spare_blocks_ratio must be in \[0, 1\), got 1"),
        (b'{"spare_blocks_ratio": NaN}', r"spare_blocks_ratio must be in \[0, 1\), got nan"),
    ],
)
def test_a_wrong_file_is_named_with_what_is_wrong(
    tmp_path: Path, content: bytes, message: str
) -> None:
    path = tmp_path / "scheduler.json"
    path.write_bytes(content)

    with pytest.raises(ConfigError, match=rf"scheduler\.json: {message}"):
        SchedulerConfig.load(path)


@pytest.mark.parametrize("value", [1.5, True, "2"])
def test_a_value_of_another_type_is_refused(value: Any) -> None:
    with pytest.raises(ConfigError, match="npu_queue_limit must be int, got"):
        SchedulerConfig(npu_queue_limit=value)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"none\.json: cannot be read as JSON: .*No such file"):
        SchedulerConfig.load(tmp_path / "none.json")


@pytest.mark.parametrize("is_offline", [None, False, True])
def test_arguments_that_are_left_open_are_decided(is_offline: bool | None) -> None:
    args = EngineArgs(model="m", is_offline=is_offline, max_num_seqs=7)

    config = SchedulerConfig.from_engine_args(args)

    assert config == SchedulerConfig(
        spare_blocks_ratio=0.0 if is_offline else 0.2,
        is_offline=bool(is_offline),
        max_num_seqs=7,
    )


def test_arguments_that_are_given_are_kept() -> None:
    config = SchedulerConfig(
        npu_queue_limit=3,
        max_processing_samples=5,
        spare_blocks_ratio=0.5,
        is_offline=True,
        prefill_chunk_size=64,
        max_num_seqs=7,
        max_num_batched_tokens=99,
    )

    args = EngineArgs(model="m", **dataclasses.asdict(config))

    assert SchedulerConfig.from_engine_args(args) == config


def test_each_stage_of_a_pipeline_has_a_step_in_flight() -> None:
    args = EngineArgs(model="m", pipeline_parallel_size=4)

    assert SchedulerConfig.from_engine_args(args).npu_queue_limit == 4
