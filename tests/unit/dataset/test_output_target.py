from __future__ import annotations

from pathlib import Path

import pytest

from furiosa_llm.dataset.target import OutputTarget, check_output
from furiosa_llm.errors import ConfigError, DatasetError


def test_a_new_file_in_a_folder_is_allowed(folder: Path) -> None:
    (folder / "in.jsonl").touch()

    target = check_output("out.parquet", [Path("in.jsonl")], overwrite=False)

    assert target == OutputTarget(path=Path("out.parquet"), is_folder=False)
    assert target.parts_folder == Path("out.parquet.parts")


def test_a_trailing_slash_or_an_empty_folder_asks_for_a_folder(folder: Path) -> None:
    (folder / "empty").mkdir()

    assert check_output("new/", [], overwrite=False).is_folder
    assert check_output("empty", [], overwrite=False).is_folder


@pytest.mark.parametrize("output", ["in.jsonl", "./in.jsonl", "link.jsonl", "hard.jsonl"])
def test_an_input_is_never_overwritten(folder: Path, output: str) -> None:
    (folder / "in.jsonl").touch()
    (folder / "link.jsonl").symlink_to("in.jsonl")
    (folder / "hard.jsonl").hardlink_to(folder / "in.jsonl")

    with pytest.raises(ConfigError, match="is an input, too; choose another output"):
        check_output(output, [Path("other.jsonl"), Path("in.jsonl")], overwrite=True)


def test_a_folder_that_holds_an_input_is_never_overwritten(folder: Path) -> None:
    (folder / "out").mkdir()
    (folder / "out" / "part-000000.parquet").touch()

    with pytest.raises(ConfigError, match=r"holds the input out/part-000000\.parquet"):
        check_output("out", [Path("out/part-000000.parquet")], overwrite=True)


@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.parametrize(
    ("output", "message"),
    [
        ("photos", "photos holds files that are no output of this program .'cat.jpg'.; choose"),
        ("old.parquet/", "old.parquet is a file, not a folder"),
        ("none/out.parquet", "none is not an existing folder; create it"),
        ("/dev/null", "/dev/null is neither a file nor a folder"),
    ],
)
def test_what_could_do_harm_is_refused(
    folder: Path, output: str, message: str, overwrite: bool
) -> None:
    (folder / "photos").mkdir()
    (folder / "photos" / "cat.jpg").touch()
    (folder / "old.parquet").touch()

    with pytest.raises(DatasetError, match=message):
        check_output(output, [], overwrite=overwrite)


@pytest.mark.parametrize(
    ("output", "message"),
    [
        ("old.parquet", "old.parquet exists already; choose another output or use --overwrite"),
        ("done", "done exists already"),
    ],
)
def test_earlier_work_is_replaced_only_if_asked(folder: Path, output: str, message: str) -> None:
    (folder / "old.parquet").touch()
    (folder / "done").mkdir()
    (folder / "done" / "_manifest.json").touch()

    with pytest.raises(DatasetError, match=message):
        check_output(output, [], overwrite=False)
    check_output(output, [], overwrite=True)


@pytest.mark.parametrize("output", [".", "/", "..", "./"])
def test_a_folder_without_a_name_of_its_own_is_refused(folder: Path, output: str) -> None:
    assert folder.is_dir()

    with pytest.raises(ConfigError, match="has no name of its own"):
        check_output(output, [], overwrite=True)


def test_a_link_stays_and_what_it_leads_to_is_replaced(folder: Path) -> None:
    (folder / "real.parquet").touch()
    (folder / "link.parquet").symlink_to("real.parquet")

    target = check_output("link.parquet", [], overwrite=True)

    assert target.path == (folder / "real.parquet").resolve()


@pytest.mark.parametrize(
    ("output", "better"),
    [
        ("out.jsonl", "out.parquet"),
        ("some/out.CSV", "some/out.parquet"),
        ("out.json", "out.parquet"),
        ("out.parquet.gz", "out.parquet"),
    ],
)
def test_a_name_of_another_format_is_refused(folder: Path, output: str, better: str) -> None:
    (folder / "some").mkdir()

    with pytest.raises(ConfigError, match=f"would hold Parquet, .* a name such as {better}$"):
        check_output(output, [], overwrite=False)


@pytest.mark.parametrize("output", ["out", "out.v2", "out.PARQUET", "out.jsonl/"])
def test_any_other_name_is_allowed(folder: Path, output: str) -> None:
    assert check_output(output, [], overwrite=False).path.parent == Path()
    assert list(folder.iterdir()) == []


def test_standard_output_is_refused() -> None:
    with pytest.raises(ConfigError, match="Parquet cannot be streamed"):
        check_output("-", [], overwrite=False)


@pytest.mark.parametrize("output", ["loop.parquet", "loop.parquet/"])
def test_an_output_that_is_a_link_to_itself_is_refused(folder: Path, output: str) -> None:
    (folder / "loop.parquet").symlink_to("loop.parquet")

    with pytest.raises(DatasetError, match=r"loop\.parquet cannot be found"):
        check_output(output, [], overwrite=True)


@pytest.mark.parametrize("left", ["out.parquet", "out.parquet.parts", "out.parquet.status.json"])
def test_what_a_run_leaves_tells_of_it(folder: Path, left: str) -> None:
    target = OutputTarget.of("out.parquet")
    assert not target.has_earlier_run

    (folder / left).touch()

    assert target.has_earlier_run


@pytest.mark.parametrize("left", ["out.parts", "out.status.json"])
def test_a_run_into_a_folder_that_is_still_empty_is_told_of_too(folder: Path, left: str) -> None:
    (folder / "out").mkdir()
    target = OutputTarget.of("out")
    assert not target.has_earlier_run

    (folder / left).touch()

    assert target.has_earlier_run


def test_a_name_that_no_file_can_have_is_refused(folder: Path) -> None:
    assert folder.is_dir()
    with pytest.raises(DatasetError, match="cannot be"):
        check_output("x" * 300 + "/out.parquet/y.parquet", [], overwrite=False)
