from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from furiosa_llm.dataset.status_file import StatusFile
from furiosa_llm.errors import DatasetError, RunStoppedError
from tests.factories import FakeClock


def read(path: Path) -> dict[str, object]:
    content: dict[str, object] = json.loads(path.read_text())
    return content


def test_a_watcher_reads_one_whole_state_which_changes_once_a_second(tmp_path: Path) -> None:
    path, clock = tmp_path / "out.parquet.status.json", FakeClock()

    with StatusFile.open(path, clock=clock) as status:
        status.update("loading", dict)
        assert read(path)["state"] == "loading"
        status.update("answering", lambda: {"rows_done": 1})
        clock.now = 0.5
        status.update("answering", lambda: {"rows_done": 2})
        assert read(path)["rows_done"] == 1
        clock.now = 1.0
        status.update("answering", lambda: {"rows_done": 3})
        content = read(path)

    assert content["rows_done"] == 3
    assert content["pid"] == os.getpid()
    assert content["started_at"] <= content["updated_at"]  # type: ignore[operator]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("error", "state", "reason"),
    [
        (RunStoppedError("stopped by SIGTERM"), "stopped", "stopped by SIGTERM"),
        (KeyboardInterrupt(), "stopped", "KeyboardInterrupt"),
        (DatasetError("the disk is full"), "failed", "the disk is full"),
    ],
)
def test_a_run_that_ends_early_leaves_why_and_how_far_it_came(
    tmp_path: Path, error: BaseException, state: str, reason: str
) -> None:
    path = tmp_path / "status.json"

    def run() -> None:
        with StatusFile.open(path) as status:
            status.update("answering", lambda: {"rows_done": 7})
            raise error

    with pytest.raises(type(error)):
        run()

    content = read(path)
    assert (content["state"], content["reason"], content["rows_done"]) == (state, reason, 7)


def test_the_last_status_tells_how_far_the_run_came_in_the_end(tmp_path: Path) -> None:
    path, values = tmp_path / "status.json", {"rows_saved": 0}

    def run() -> None:
        with StatusFile.open(path) as status:
            status.update("answering", lambda: values)
            values["rows_saved"] = 12
            raise RunStoppedError("stopped by SIGTERM")

    with pytest.raises(RunStoppedError):
        run()

    assert read(path)["rows_saved"] == 12


def test_a_run_that_could_not_begin_leaves_the_status_of_another(tmp_path: Path) -> None:
    path = tmp_path / "status.json"
    path.write_text("{}")

    def run() -> None:
        with StatusFile.open(path):
            raise DatasetError("another run writes this output")

    with pytest.raises(DatasetError):
        run()

    assert path.read_text() == "{}"


def test_a_status_that_cannot_be_written_ends_no_run(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with StatusFile.open(tmp_path / "none" / "status.json") as status:
        status.update("loading", dict)
        status.update("answering", dict)

    (message,) = caplog.messages  # once is enough
    assert "status.json cannot be written: " in message
