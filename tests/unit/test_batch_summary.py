from __future__ import annotations

from furiosa_llm.batch.summary import Progress


def test_a_status_tells_the_rate_of_this_run_alone() -> None:
    progress = Progress(
        phase="answering",
        num_rows=100,
        num_done=62,
        num_failed=2,
        num_resumed=40,
        elapsed_seconds=10.0,
    )

    assert progress.as_status(48) == {
        "rows_total": 100,
        "rows_done": 62,
        "rows_failed": 2,
        "rows_saved": 48,
        "rows_per_second": 2.0,
        "seconds_left": 19.0,
    }


def test_a_status_says_nothing_of_what_is_not_known_yet() -> None:
    status = Progress(phase="loading").as_status(0)

    assert (status["rows_total"], status["seconds_left"]) == (None, None)
