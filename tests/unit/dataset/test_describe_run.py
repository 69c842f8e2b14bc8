"""What an output holds, counted from its rows."""

from __future__ import annotations

import json
import tempfile
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from furiosa_llm.dataset.describe_run import describe_run, describe_unfinished
from furiosa_llm.dataset.run_lock import RunLock
from furiosa_llm.errors import DatasetError
from tests.unit.dataset.test_compare_runs import Row, failed, make_row, write

ROWS = st.lists(
    st.one_of(
        st.builds(
            lambda replica, tokens, seconds: make_row(
                0,
                replica=replica,
                num_output_tokens=tokens,
                peak_blocks=tokens,
                tpot_s=seconds,
            ),
            st.integers(0, 1),
            st.integers(0, 9),
            st.none() | st.floats(0, 10),
        ),
        st.sampled_from([failed(0, "timeout"), failed(0, "invalid_row")]),
    ),
    max_size=12,
)


@settings(max_examples=100, deadline=None)
@given(ROWS, st.integers(1, 5))
def test_it_counts_the_rows(rows: list[Row], group: int) -> None:
    rows = [{**row, "row_index": index} for index, row in enumerate(rows)]
    with tempfile.TemporaryDirectory() as folder:
        found = describe_run(write(Path(folder) / "out.parquet", rows, group=group))

    codes = [row["error_code"] for row in rows if row["error_code"]]
    assert found.num_rows == len(rows)
    assert found.error_counts == Counter(codes)
    assert {code: row for code, (row, _) in found.first_errors.items()} == {
        code: next(row["row_index"] for row in rows if row["error_code"] == code) for code in codes
    }
    assert found.finish_reasons == Counter(row["finish_reason"] for row in rows)
    assert found.replicas == Counter(row["replica"] for row in rows)
    assert found.totals["num_output_tokens"] == sum(row["num_output_tokens"] for row in rows)
    assert found.peak_blocks == max((row["peak_blocks"] for row in rows), default=0)
    times = sorted(row["tpot_s"] for row in rows if row["tpot_s"] is not None)
    if times:
        assert found.latencies["tpot_s"]["p50"] == times[(len(times) - 1) // 2]
        assert found.latencies["tpot_s"]["max"] == times[-1]
    else:
        assert "tpot_s" not in found.latencies


def test_a_run_that_has_left_nothing_is_none(tmp_path: Path) -> None:
    assert describe_unfinished(tmp_path / "out.parquet") is None


def test_an_unfinished_run_tells_its_state_and_its_closed_rows(tmp_path: Path) -> None:
    parts = tmp_path / "out.parquet.parts"
    parts.mkdir()
    write(parts / "part-000000.parquet", [make_row(0), make_row(2)])
    write(parts / "part-000001.parquet", [make_row(1)])
    (tmp_path / "out.parquet.status.json").write_text(json.dumps({"state": "stopped"}))

    found = describe_unfinished(tmp_path / "out.parquet")

    assert found is not None
    assert (found.num_saved, found.status) == (3, {"state": "stopped"})
    assert found.parts_folder == parts
    assert not found.is_running


def test_a_run_that_holds_its_lock_is_running(tmp_path: Path) -> None:
    parts = tmp_path / "out.parquet.parts"
    lock = RunLock(parts)
    parts.mkdir()
    lock.acquire()
    try:
        running = describe_unfinished(tmp_path / "out.parquet")
    finally:
        lock.release()

    assert running is not None
    assert running.is_running


def test_a_damaged_status_is_told_of(tmp_path: Path) -> None:
    (tmp_path / "out.parquet.parts").mkdir()
    (tmp_path / "out.parquet.status.json").write_text("{")

    with pytest.raises(DatasetError, match="cannot be read"):
        describe_unfinished(tmp_path / "out.parquet")
