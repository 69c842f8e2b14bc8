"""Runs die at any moment; with --resume each ends as if nothing had happened."""

from __future__ import annotations

import random
from collections import Counter
from pathlib import Path

import pyarrow as pa
import pytest

from tests.crash.harness import CrashingRun, new_folder, same_answers, seconds_of, write_rows

_MANY_KILLS = 200


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("crash") / "rows.jsonl"
    write_rows(path)
    return path


def test_a_run_that_is_killed_ten_times_loses_and_doubles_no_row(
    rows: Path, tmp_path: Path
) -> None:
    unbroken = CrashingRun(new_folder(tmp_path, "unbroken"), rows, num_replicas=1).finish()
    run = CrashingRun(new_folder(tmp_path, "killed"), rows, num_replicas=1)

    # The lock, the manifest, and what comes after them: parts, and with many of them the merge.
    for number in (1, 3, 6, 8, 30, 45):
        assert run.kill_at_change(number, "before")
    run.kill_at_change(60, "after")
    draw = random.Random(0)
    while run.kills.total() < 10 and run.kill_a_process(draw.uniform(0.2, 1.0), draw):
        pass

    assert run.kills.total() == 10
    assert same_answers(run.finish(), unbroken)


@pytest.mark.slow
def test_two_hundred_kills_lose_and_double_no_row(rows: Path, tmp_path: Path) -> None:
    unbroken, seconds = seconds_of(
        CrashingRun(new_folder(tmp_path, "unbroken"), rows, num_replicas=1)
    )
    draw = random.Random(42)
    kills: Counter[str] = Counter()
    num_runs = 0

    # At every change of the file system in turn, until there are no more, alone and in replicas.
    for num_replicas, place in ((1, "before"), (1, "after"), (2, "before"), (2, "after")):
        run = CrashingRun(new_folder(tmp_path, "chosen"), rows, num_replicas=num_replicas)
        number = 1
        while run.kill_at_change(number, place):
            number += 1 if number < 20 else 3
        num_runs += _end(run, unbroken)
        kills += run.kills
    # And any process of the tree at any moment.
    while kills.total() < _MANY_KILLS:
        run = CrashingRun(new_folder(tmp_path, "random"), rows, num_replicas=1 + num_runs % 2)
        while run.kill_a_process(draw.uniform(0.0, 1.2 * seconds), draw):
            pass
        num_runs += _end(run, unbroken)
        kills += run.kills

    print(f"{kills.total()} kills in {num_runs} runs: {dict(kills)}")  # noqa: T201
    assert {"before", "after", "parent", "launcher", "replica"} <= kills.keys()


def _end(run: CrashingRun, unbroken: pa.Table) -> int:
    assert same_answers(run.finish(), unbroken)
    return 1
