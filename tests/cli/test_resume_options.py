"""The options of `run` about going on and stopping, and what it says of them."""

from __future__ import annotations

import pytest

from furiosa_llm.errors import RunStoppedError
from tests.cli.cli_factories import REQUIRED, FakeBatch, invoke, make_summary


def test_a_run_that_was_told_to_stop_ends_with_75(batch: FakeBatch) -> None:
    batch.error = RunStoppedError("stopped by SIGTERM before all rows were done")

    outcome = invoke("run", *REQUIRED, "--quiet")

    assert outcome.exit_code == 75
    assert outcome.stderr == "Error: stopped by SIGTERM before all rows were done\n"


def test_resuming_a_complete_output_does_nothing_and_says_so(batch: FakeBatch) -> None:
    batch.summary = make_summary(was_complete=True)

    outcome = invoke("run", *REQUIRED, "--resume")

    assert outcome.exit_code == 0
    assert outcome.stderr.splitlines()[-1] == (
        "out.parquet is complete already (80 rows): nothing to do"
    )


@pytest.mark.parametrize(("options", "code"), [([], 3), (["--max-errors", "3"], 0)])
def test_a_complete_output_with_failed_rows_ends_as_the_run_that_wrote_it(
    batch: FakeBatch, options: list[str], code: int
) -> None:
    batch.summary = make_summary(was_complete=True, num_failed=3)

    outcome = invoke("run", *REQUIRED, "--resume", *options)

    assert outcome.exit_code == code
    assert outcome.stderr.splitlines()[-1] == (
        "out.parquet is complete already (80 rows, 3 of them failed); --retry-failed does those "
        "again"
    )


def test_a_summary_tells_how_many_rows_were_done_before(batch: FakeBatch) -> None:
    batch.summary = make_summary(num_resumed=30)

    outcome = invoke("run", *REQUIRED, "--resume")

    assert "resumed     30 rows were done before" in outcome.stderr.splitlines()


def test_failed_rows_are_tried_again_only_where_a_run_is_resumed(batch: FakeBatch) -> None:
    outcome = invoke("run", *REQUIRED, "--retry-failed")

    assert outcome.exit_code == 2
    assert "--retry-failed goes with --resume only; give both" in outcome.stderr
    assert not batch.jobs


@pytest.mark.parametrize(
    ("arguments", "changes"),
    [
        ([], {"rows_per_part": 8192, "seconds_per_part": 60.0, "grace_seconds": 30.0}),
        (["--checkpoint-every", "1k"], {"rows_per_part": 1000, "seconds_per_part": 60.0}),
        (["--checkpoint-every", "90s"], {"rows_per_part": 8192, "seconds_per_part": 90.0}),
        (["--checkpoint-every", "5m"], {"seconds_per_part": 300.0}),
        (["--grace", "5", "--deadline", "1.5h"], {"grace_seconds": 5, "deadline_seconds": 5400}),
        (["--resume", "--retry-failed"], {"resume": True, "retry_failed": True}),
    ],
)
def test_options_reach_the_job(
    batch: FakeBatch, arguments: list[str], changes: dict[str, object]
) -> None:
    invoke("run", *REQUIRED, *arguments)

    assert {name: getattr(batch.job, name) for name in changes} == changes


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--checkpoint-every", "often"], "'often' is neither a number of rows nor a time"),
        (["--checkpoint-every", "0"], "'0' rows must be at least 1"),
        (["--deadline", "2 days"], "'2 days' is not a time; write for example 30s, 5m or 2h"),
        (["--grace", "-1s"], "'-1s' is not a time"),
    ],
)
def test_a_wrong_time_is_told_with_what_to_write(
    batch: FakeBatch, arguments: list[str], message: str
) -> None:
    outcome = invoke("run", *REQUIRED, *arguments)

    assert outcome.exit_code == 2
    assert message in outcome.stderr
    assert not batch.jobs
