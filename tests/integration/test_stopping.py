"""What a batch that is asked to stop still does."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from furiosa_llm.batch.run import run_batch_job
from furiosa_llm.batch.summary import Progress
from furiosa_llm.errors import RunStoppedError
from tests.integration.test_row_limits import GOOD, LONG, make_job, read


@pytest.mark.parametrize(("grace_seconds", "are_answered"), [(0.0, False), (600.0, True)])
def test_what_runs_is_answered_within_the_grace_time_and_nothing_else_is(
    tmp_path: Path, grace_seconds: float, are_answered: bool
) -> None:
    job = make_job(tmp_path, [GOOD] * 40, sampling_params=LONG, grace_seconds=grace_seconds)
    seen: list[Progress] = []

    def stop_at_once(progress: Progress) -> None:
        if progress.num_running and not seen:
            os.kill(os.getpid(), signal.SIGINT)
        if progress.num_running:
            seen.append(progress)

    with pytest.raises(RunStoppedError, match="stopped by SIGINT"):
        run_batch_job(job, on_progress=stop_at_once)

    parts = sorted(Path(f"{job.output}.parts").glob("part-*"))
    assert sum(len(read(part)) for part in parts) == (8 if are_answered else 0)


def test_a_grace_time_as_long_as_the_deadline_leaves_half_of_it_to_answer_rows(
    tmp_path: Path,
) -> None:
    job = make_job(tmp_path, [GOOD], grace_seconds=600.0, deadline_seconds=600.0)

    run_batch_job(job)

    assert len(read(job.output)) == 1
