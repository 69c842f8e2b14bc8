"""Runs die at any moment; with --resume each ends as if nothing had happened."""

from __future__ import annotations

import random
from collections import Counter
from pathlib import Path

import pyarrow as pa
import pytest

from tests.crash.harness import (
    LAUNCHER,
    PARENT,
    REPLICA,
    ROLES,
    CrashingRun,
    new_folder,
    same_answers,
    seconds_of,
    write_rows,
)

_MANY_KILLS = 200
_NUM_ROWS_AT_RANDOM = 1200  # so that replicas run for several seconds
_LONGEST_SECONDS_OF_REPLICA = 1.0


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
    while run.kills.total() < 10 and run.kill_a_process(PARENT, draw.uniform(0.2, 1.0), draw):
        pass

    assert run.kills.total() == 10
    assert same_answers(run.finish(), unbroken)


def test_replicas_lose_and_double_no_row_whichever_process_is_killed(
    rows: Path, tmp_path: Path
) -> None:
    unbroken = CrashingRun(new_folder(tmp_path, "unbroken"), rows, num_replicas=1).finish()
    run = CrashingRun(new_folder(tmp_path, "killed"), rows, num_replicas=2)
    draw = random.Random(0)

    for role in (REPLICA, LAUNCHER, PARENT):
        run.kill_a_process(role, 0.1, draw)

    assert set(ROLES) <= run.kills.keys()
    assert same_answers(run.finish(), unbroken)


@pytest.mark.slow
def test_two_hundred_kills_lose_and_double_no_row(rows: Path, tmp_path: Path) -> None:
    unbroken = CrashingRun(new_folder(tmp_path, "unbroken"), rows, num_replicas=1).finish()
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
    num_runs += _kill_at_random(tmp_path, kills)

    print(f"{kills.total()} kills in {num_runs} runs: {dict(kills)}")  # noqa: T201
    assert {"before", "after"} <= kills.keys()
    assert min(kills[role] for role in ROLES) >= 10


def _kill_at_random(tmp_path: Path, kills: Counter[str]) -> int:
    """Kills parents, launchers and replicas alike at any moment. Returns how many runs it took."""
    rows = tmp_path / "many.jsonl"
    write_rows(rows, _NUM_ROWS_AT_RANDOM)
    folder = new_folder(tmp_path, "many")
    unbroken, seconds = seconds_of(CrashingRun(folder, rows, num_replicas=2))
    draw = random.Random(42)
    num_runs = 0
    while kills.total() < _MANY_KILLS:
        run = CrashingRun(new_folder(tmp_path, "random"), rows, num_replicas=2)
        is_complete = False
        while not is_complete:
            role = draw.choice(ROLES)
            longest = _LONGEST_SECONDS_OF_REPLICA if role == REPLICA else seconds
            is_complete = not run.kill_a_process(role, draw.uniform(0.0, longest), draw)
        num_runs += _end(run, unbroken)
        kills.update(run.kills)
    return num_runs


def _end(run: CrashingRun, unbroken: pa.Table) -> int:
    assert same_answers(run.finish(), unbroken)
    return 1
