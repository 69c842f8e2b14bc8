from __future__ import annotations

import dataclasses

from benchmarks.report import PAGE, render
from benchmarks.results import FOLDER, Run, read_sessions
from tests.unit.benchmarks.benchmark_factories import make_result, make_run, make_session


def test_the_page_is_what_the_results_make_it() -> None:
    assert PAGE.read_text() == render(read_sessions(FOLDER))


def test_a_row_has_seconds_tokens_share_and_ratio() -> None:
    ours, other = make_run("furiosa-llm", seconds=(1.0, 4.0)), make_run(seconds=(2.0, 4.0))

    page = render([make_session(make_result(ours, other))])

    assert "### llama-135m: mixed\n" in page
    assert "64 requests: prompts of 32 to 256 tokens" in page
    assert "Matrix rate: 150 (100 to 200) GFLOP/s. Measured 2020-01-02." in page
    assert "| furiosa-llm, float32 | 2.5 (1.0 to 4.0) | 480 | 56 % |  |\n" in page
    assert "| other, float32 | 3.0 (2.0 to 4.0) | 400 | 31 % | 1.50 (1.00 to 2.00) |\n" in page


def test_a_peer_that_is_not_installed_is_said_to_be_so() -> None:
    absent = Run(engine="absent", is_ours=False, precision="int8", problem="not installed")

    page = render([make_session(make_result(make_run("furiosa-llm"), absent))])

    assert "| absent, int8 | not installed |  |  |\n" in page


def test_memory_is_the_most_of_all_rounds() -> None:
    run = Run(
        engine="furiosa-llm",
        is_ours=True,
        precision="float32, 2 replicas",
        seconds=(1.0, 1.0),
        peak_memory_bytes=(2**30, 3 * 2**29),
    )

    page = render([make_session(make_result(run, flops=None), kind="engine")])

    assert "| furiosa-llm, float32, 2 replicas | 1.0 | 1,200 | 1.50 GiB |\n" in page
    assert "## This engine alone, on a processor (AVX2)\n" in page
    assert "## Beside others" not in page


def test_a_disturbed_measurement_says_so() -> None:
    quiet = dataclasses.replace(make_run(), busy_elsewhere=(0.01, 0.02))
    disturbed = dataclasses.replace(make_run(), busy_elsewhere=(0.01, 0.3))

    assert "Other programs" not in render([make_session(make_result(quiet))])
    assert "up to 30 % of the cores" in render([make_session(make_result(quiet, disturbed))])


def test_machine_versions_and_settings_stand_once() -> None:
    session = make_session(make_result(make_run()), make_result(make_run(), workload="one row"))

    page = render([session])

    assert page.count("- a processor, 2 cores, 8 GiB, avx2\n") == 1
    assert page.count("- furiosa-llm-cli 0.1.0\n") == 1
    assert page.count("- engine 1.2\n") == 1
    assert "- other, float32, mixed: `--parallel 16`\n" in page


def test_each_processor_has_tables_of_its_own() -> None:
    sessions = [make_session(make_result(make_run()), cpu=cpu) for cpu in ("one", "another")]

    page = render(sessions)

    assert page.count("### llama-135m: mixed\n") == 2
    assert page.index("on one (AVX2)\n") < page.index("on another (AVX2)\n")
