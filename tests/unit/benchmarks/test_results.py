from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks.results import Run, newest_results, read_session, read_sessions, write_session
from tests.unit.benchmarks.benchmark_factories import make_result, make_run, make_session


def test_a_written_session_is_read_again(tmp_path: Path) -> None:
    missing = Run(engine="absent", is_ours=False, precision="int8", problem="not installed")
    session = make_session(make_result(make_run("furiosa-llm"), make_run(), missing))

    path = write_session(session, tmp_path / "results")

    assert path.name == "peers-2020-01-02T030405Z.json"
    assert read_session(path) == session
    assert read_sessions(path.parent) == [session]


def test_the_file_states_what_follows_from_the_seconds(tmp_path: Path) -> None:
    ours, other = make_run("furiosa-llm", seconds=(1.0, 4.0)), make_run(seconds=(2.0, 4.0))
    path = write_session(make_session(make_result(ours, other)), tmp_path)

    content = json.loads(path.read_text())["workloads"][0]

    assert content["times_as_fast"] == [
        {
            "ours": "furiosa-llm, float32",
            "other": "other, float32",
            "by_round": [2.0, 1.0],
            "median": 1.5,
            "lowest": 1.0,
            "highest": 2.0,
        }
    ]
    assert content["runs"][0]["seconds_spread"]["median"] == 2.5
    assert content["runs"][0]["share_of_matrix_rate"]["highest"] == pytest.approx(1.0)


def test_only_runs_of_the_same_kind_of_precision_are_a_pair() -> None:
    ours, ours_int8 = make_run("furiosa-llm"), make_run("furiosa-llm", "int8")
    other, other_int8 = make_run("a", "float32 (float16 weights)"), make_run("a", "int8 (Q8_0)")
    absent = make_run("b", seconds=())

    pairs = list(make_result(ours, ours_int8, other, other_int8, absent).pairs())

    assert pairs == [(ours, other), (ours_int8, other_int8)]


def test_a_later_session_replaces_the_workloads_that_it_measured_again() -> None:
    mixed, other = make_result(make_run()), make_result(make_run(), workload="classification")
    again = make_result(make_run(seconds=(1.0, 1.0)))
    first = make_session(mixed, other, started_at="2020-01-01T00:00:00+00:00")
    second = make_session(again, started_at="2020-02-01T00:00:00+00:00")

    assert newest_results([second, first]) == [(second, again), (first, other)]


def test_a_result_of_another_kind_replaces_nothing() -> None:
    peers, engine = make_session(make_result()), make_session(make_result(), kind="engine")

    assert len(newest_results([peers, engine])) == 2


def test_a_result_on_another_processor_replaces_nothing() -> None:
    one, other = make_session(make_result()), make_session(make_result(), cpu="Intel(R) Xeon(R)")

    assert len(newest_results([one, other])) == 2
    assert other.processor == "Intel Xeon (AVX2)"
