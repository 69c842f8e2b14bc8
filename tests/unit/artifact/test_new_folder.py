from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from furiosa_llm.artifact_builder.folder import check_output, new_folder
from furiosa_llm.errors import ConfigError, DatasetError
from tests.unit.artifact.artifact_factories import write_artifact


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def write_two(output: Path) -> None:
    with new_folder(output) as writer:
        writer.write("a.json", [b"12", b"3"])
        writer.write("more/b.txt", [])


def fail_at(monkeypatch: pytest.MonkeyPatch, name: str, call: int, error: BaseException) -> None:
    """Lets one call of a function of `os` fail."""
    real = getattr(os, name)
    num_calls = 0

    def sometimes(*args: object) -> object:
        nonlocal num_calls
        num_calls += 1
        if num_calls == call:
            raise error
        return real(*args)

    monkeypatch.setattr(os, name, sometimes)


def test_a_folder_appears_with_its_files_when_all_of_them_are_written(tmp_path: Path) -> None:
    with new_folder(tmp_path / "out") as writer:
        writer.write("a.json", [b"12", b"3"])
        assert names(tmp_path) == [".out.building"]
        writer.write("more/b.txt", [])

    assert names(tmp_path) == ["out"]
    assert names(tmp_path / "out") == ["a.json", "more"]
    assert [(file.name, file.num_bytes) for file in writer.files] == [
        ("a.json", 3),
        ("more/b.txt", 0),
    ]


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "No space left on device")])
@pytest.mark.parametrize("call", range(1, 6))  # two files, two folders, the folder above
def test_a_full_disk_is_one_line_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: int, error: OSError
) -> None:
    fail_at(monkeypatch, "fsync", call, error)

    with pytest.raises(DatasetError, match="cannot be written: No space left on device"):
        write_two(tmp_path / "out")

    assert names(tmp_path) == []


@pytest.mark.parametrize("call", range(1, 6))
def test_an_interrupted_build_leaves_what_was_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: int
) -> None:
    write_artifact(tmp_path / "out", name="old")
    before = names(tmp_path / "out")
    fail_at(monkeypatch, "fsync", call, KeyboardInterrupt())

    with pytest.raises(KeyboardInterrupt):
        write_two(tmp_path / "out")

    assert names(tmp_path) == ["out"]
    assert names(tmp_path / "out") == before


@pytest.mark.parametrize("call", [1, 2])  # the old folder away, the new one in its place
def test_a_rename_that_fails_leaves_what_was_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: int
) -> None:
    write_artifact(tmp_path / "out")
    before = names(tmp_path / "out")
    fail_at(monkeypatch, "rename", call, PermissionError(errno.EACCES, "Permission denied"))

    with pytest.raises(DatasetError, match="out: cannot be written: Permission denied"):
        write_two(tmp_path / "out")

    assert names(tmp_path) == ["out"]
    assert names(tmp_path / "out") == before


def test_an_error_in_the_block_leaves_nothing(tmp_path: Path) -> None:
    def chunks() -> Iterator[bytes]:
        yield b"1"
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError), new_folder(tmp_path / "out") as writer:
        writer.write("a.json", chunks())

    assert names(tmp_path) == []


def test_the_next_build_takes_away_what_a_killed_one_left(tmp_path: Path) -> None:
    (tmp_path / ".out.building").mkdir()
    (tmp_path / ".out.building" / "half").touch()
    (tmp_path / ".out.building" / "lock").touch()  # no living process holds it

    write_two(tmp_path / "out")

    assert names(tmp_path) == ["out"]
    assert names(tmp_path / "out") == ["a.json", "more"]


def test_two_builds_do_not_write_the_same_folder(tmp_path: Path) -> None:
    with new_folder(tmp_path / "out") as writer:
        with (
            pytest.raises(DatasetError, match="is being built by another process; wait"),
            new_folder(tmp_path / "out"),
        ):
            pytest.fail("the second build may not begin")
        writer.write("a.json", [b"1"])

    assert names(tmp_path / "out") == ["a.json"]


def test_an_old_folder_gives_way_only_to_a_complete_one(tmp_path: Path) -> None:
    write_artifact(tmp_path / "out")

    write_two(tmp_path / "out")

    assert names(tmp_path) == ["out"]
    assert names(tmp_path / "out") == ["a.json", "more"]


def test_a_link_stays_and_what_it_leads_to_is_written(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "far")

    write_two(tmp_path / "link")

    assert (tmp_path / "link").is_symlink()
    assert names(tmp_path / "far") == ["a.json", "more"]


def test_an_output_must_lie_outside_the_model(tmp_path: Path) -> None:
    model = tmp_path / "model"
    model.mkdir()
    (tmp_path / "link").symlink_to(model)

    for output in (model, model / "out", tmp_path / "link", model / ".." / "model" / "x"):
        with pytest.raises(ConfigError, match="lies in MODEL"):
            check_output(output, model, overwrite=True)
    with pytest.raises(ConfigError, match="holds MODEL"):
        check_output(tmp_path, model, overwrite=True)


def test_nothing_is_replaced_unless_asked_for(tmp_path: Path) -> None:
    write_artifact(tmp_path / "a")

    check_output(tmp_path / "a", tmp_path / "model", overwrite=True)
    with pytest.raises(DatasetError, match="exists already; choose another folder or use --over"):
        check_output(tmp_path / "a", tmp_path / "model", overwrite=False)


def test_nothing_but_an_artifact_is_ever_replaced(tmp_path: Path) -> None:
    home = tmp_path / "home"
    home.mkdir()
    (home / "thesis.txt").touch()
    write_artifact(tmp_path / "a")
    (tmp_path / "a" / "answers.parquet").touch()

    with pytest.raises(DatasetError, match="is no artifact that could be replaced"):
        check_output(home, tmp_path / "model", overwrite=True)
    with pytest.raises(DatasetError, match="is a file, not a folder"):
        check_output(home / "thesis.txt", tmp_path / "model", overwrite=True)
    with pytest.raises(DatasetError, match=r"holds 'answers.parquet', which is no part of the art"):
        check_output(tmp_path / "a", tmp_path / "model", overwrite=True)


def test_an_empty_folder_may_be_replaced(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()

    check_output(tmp_path / "a", tmp_path / "model", overwrite=True)
    write_two(tmp_path / "a")

    assert names(tmp_path) == ["a"]


def test_the_folder_above_must_exist(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="is not an existing folder; create it or choose"):
        check_output(tmp_path / "no" / "out", tmp_path / "model", overwrite=False)
