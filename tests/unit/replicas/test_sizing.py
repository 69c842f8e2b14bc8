from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from furiosa_llm.errors import ConfigError
from furiosa_llm.replicas.sizing import (
    REPLICA_BYTES,
    check_fits_memory,
    choose_num_replicas,
    weights_bytes,
)

GIB = 2**30
PLENTY = 64 * GIB


@pytest.mark.parametrize(
    ("model_bytes", "num_prompts", "num_replicas"),
    [
        pytest.param(540 * 2**20, 1000, 4, id="a model of 135 million parameters, many rows"),
        pytest.param(540 * 2**20, 23, 2, id="rows for two"),
        pytest.param(540 * 2**20, 15, 1, id="a few rows"),
        pytest.param(5400 * 2**20, 7, 1, id="a few rows of much work"),
        pytest.param(3 * 2**20, 80, 1, id="a small model, a short run"),
        pytest.param(3 * 2**20, 100_000, 4, id="a small model, a long run"),
        pytest.param(540 * 2**20, None, 1, id="nobody knows how many"),
        pytest.param(None, 1000, 1, id="a model that is not here yet"),
    ],
)
def test_replicas_are_started_where_there_is_work_for_them(
    model_bytes: int | None, num_prompts: int | None, num_replicas: int
) -> None:
    chosen = choose_num_replicas(
        num_cores=4, weights_bytes=model_bytes, available_bytes=PLENTY, num_prompts=num_prompts
    )

    assert chosen == num_replicas


def test_replicas_leave_room_for_the_weights() -> None:
    chosen = choose_num_replicas(
        num_cores=8, weights_bytes=GIB, available_bytes=2 * GIB + 3 * REPLICA_BYTES, num_prompts=999
    )

    assert chosen == 3


@given(
    num_cores=st.integers(1, 256),
    model_bytes=st.none() | st.integers(0, 2**42),
    available_bytes=st.integers(0, 2**42),
    num_prompts=st.none() | st.integers(0, 10**9),
)
def test_there_is_at_least_one_and_at_most_one_for_each_core(
    num_cores: int, model_bytes: int | None, available_bytes: int, num_prompts: int | None
) -> None:
    chosen = choose_num_replicas(
        num_cores=num_cores,
        weights_bytes=model_bytes,
        available_bytes=available_bytes,
        num_prompts=num_prompts,
    )

    assert 1 <= chosen <= num_cores


def test_the_size_of_the_weights_is_that_of_all_their_files(tmp_path: Path) -> None:
    for index, size in enumerate((10, 20)):
        (tmp_path / f"model-{index}.safetensors").write_bytes(bytes(size))
    (tmp_path / "config.json").write_bytes(bytes(5))

    assert weights_bytes(str(tmp_path)) == 30
    assert weights_bytes("a/hub-id") is None


def test_more_processes_than_the_memory_holds_are_refused() -> None:
    check_fits_memory(8, available_bytes=2 * GIB)

    with pytest.raises(ConfigError, match=r"9 processes need 2\.2 GiB .* but 2\.0 GiB are free"):
        check_fits_memory(9, available_bytes=2 * GIB)
