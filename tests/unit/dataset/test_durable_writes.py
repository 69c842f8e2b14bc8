"""What is on the disk at each moment, for a machine that loses its power."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

import pytest

from furiosa_llm.dataset.join_shards import join_shards
from furiosa_llm.dataset.run_lock import RunLock
from tests.unit.dataset.dataset_factories import make_answer, write_answers
from tests.unit.dataset.test_join_shards import write_shards


def noted_syncs(folder: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What is made durable from now on, by its path in the folder."""
    synced: list[str] = []
    sync = os.fsync

    def note(descriptor: int) -> None:
        path = Path(f"/proc/self/fd/{descriptor}").readlink()
        synced.append(str(path.relative_to(folder)))
        sync(descriptor)

    monkeypatch.setattr(os, "fsync", note)
    return synced


@pytest.mark.parametrize(
    ("name", "merged"),
    [
        ("out", ["out.parts/merged.parquet.tmp", "out.parts"]),
        (
            "out/",
            [
                "out.parts/merged/part-000000.parquet.tmp",
                "out.parts/merged",
                "out.parts/merged/_manifest.json.tmp",
                "out.parts/merged",
                "out.parts/merged",
            ],
        ),
    ],
)
def test_every_file_is_made_durable_and_then_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, merged: list[str]
) -> None:
    synced = noted_syncs(tmp_path, monkeypatch)

    write_answers(f"{tmp_path}/{name}", [make_answer(0)])

    assert synced == [
        ".",
        "out.parts/manifest.json.tmp",
        "out.parts",
        "out.parts/part-000000.parquet.tmp",
        "out.parts",
        *merged,
        ".",
    ]


def test_joined_shards_are_made_durable_and_then_their_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shards = write_shards(tmp_path, [{}] * 4, 2)
    synced = noted_syncs(tmp_path, monkeypatch)

    join_shards(str(tmp_path / "joined"), shards)

    assert synced[-1] == "."
    assert any(name.startswith("joined") for name in synced[:-1])


def test_a_lock_that_is_removed_while_it_is_opened_is_taken_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second, third = (RunLock(tmp_path / "parts") for _ in range(3))
    first.acquire()
    lock = fcntl.flock

    def end_first(descriptor: int, operation: int) -> None:
        monkeypatch.setattr(fcntl, "flock", lock)
        first.release()
        lock(descriptor, operation)

    monkeypatch.setattr(fcntl, "flock", end_first)
    second.acquire()

    with pytest.raises(BlockingIOError):
        third.acquire()
    second.release()


def test_a_lock_is_held_until_its_file_is_gone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lock = RunLock(tmp_path / "parts")
    lock.acquire()
    close = os.close
    was_there: list[bool] = []

    def note(descriptor: int) -> None:
        was_there.append((tmp_path / "parts" / "lock").exists())
        close(descriptor)

    monkeypatch.setattr(os, "close", note)
    lock.release()

    assert was_there == [False]
