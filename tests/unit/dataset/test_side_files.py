from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from furiosa_llm.dataset.side_files import SideFile, check_side_files
from furiosa_llm.dataset.step_stats import STEP_STATS_SCHEMA
from furiosa_llm.dataset.target import check_output
from furiosa_llm.errors import ConfigError, DatasetError


@pytest.mark.parametrize(
    ("path", "overwrite", "error", "message"),
    [
        ("in.jsonl", True, ConfigError, "--failed-rows in.jsonl is an input, too"),
        ("hard.jsonl", True, ConfigError, "is an input, too"),
        ("steps.parquet", True, ConfigError, "is the file of --step-stats, too"),
        ("out.parquet", True, ConfigError, "is the output, too"),
        ("out.parquet.status.json", True, ConfigError, "is the file that tells how far the run"),
        ("out.parquet.status.json.tmp", True, ConfigError, "is the file that tells how far"),
        ("out.parquet.parts", True, ConfigError, "among the finished rows in out.parquet.parts"),
        ("out.parquet.parts/a", True, ConfigError, "among the finished rows in out.parquet.parts"),
        ("loop.jsonl", True, DatasetError, "loop.jsonl cannot be found"),
        ("old.parquet", False, DatasetError, "exists already"),
        ("missing/steps.parquet", True, DatasetError, "missing is not an existing folder"),
        ("folder", True, DatasetError, "is a folder"),
        ("-", True, ConfigError, "--failed-rows - is not possible; name a file"),
    ],
)
def test_a_file_beside_the_output_destroys_nothing(
    folder: Path, path: str, overwrite: bool, error: type[Exception], message: str
) -> None:
    (folder / "in.jsonl").touch()
    (folder / "hard.jsonl").hardlink_to(folder / "in.jsonl")
    (folder / "old.parquet").touch()
    (folder / "folder").mkdir()
    (folder / "loop.jsonl").symlink_to("loop.jsonl")
    target = check_output("out.parquet", [], overwrite=False)
    files = [
        SideFile.of_step_stats(Path("steps.parquet")),
        SideFile.of_failed_rows(Path(path)),
    ]

    with pytest.raises(error, match=message):
        check_side_files(files, [Path("in.jsonl")], target, overwrite=overwrite)


def test_files_beside_the_output_that_are_new_are_allowed(folder: Path) -> None:
    target = check_output("out.parquet", [], overwrite=False)
    files = [SideFile.of_failed_rows(folder / "failed.jsonl")]

    check_side_files(files, [Path("in.jsonl")], target, overwrite=False)


def test_a_file_in_a_folder_of_answers_is_refused(folder: Path) -> None:
    target = check_output("out/", [], overwrite=False)
    files = [SideFile.of_step_stats(folder / "out" / "steps.parquet")]

    with pytest.raises(ConfigError, match="is among the files of the output out, too"):
        check_side_files(files, [], target, overwrite=False)


KINDS: dict[str, Callable[[Path], SideFile]] = {
    "rows": SideFile.of_failed_rows,
    "steps": SideFile.of_step_stats,
    "json": SideFile.of_json,
}


@pytest.mark.parametrize(
    ("kind", "content"),
    [
        ("rows", b""),
        ("rows", b'{"prompt": "a"}\n{"prompt": 5}\n'),
        ("json", b'{"a": [1,\n2]}\n'),
        ("steps", STEP_STATS_SCHEMA.append(pa.field("of_a_later_version", pa.int8()))),
    ],
)
def test_a_file_of_the_same_content_is_replaced(
    folder: Path, kind: str, content: bytes | pa.Schema
) -> None:
    old = folder / "old"
    write(old, content)

    check_side_files([KINDS[kind](old)], [], None, overwrite=True)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "content",
    [b"{{ prompt }}", b"model: a\n", b"[1, 2]", b"\xff", pa.schema([("prompt", pa.string())])],
    ids=["template", "yaml", "list", "bytes", "table"],
)
def test_no_other_file_is_replaced(folder: Path, kind: str, content: bytes | pa.Schema) -> None:
    old = folder / "old"
    write(old, content)

    with pytest.raises(DatasetError, match=r"/old holds no .*, which alone --.* replaces; choose"):
        check_side_files([KINDS[kind](old)], [], None, overwrite=True)


def write(path: Path, content: bytes | pa.Schema) -> None:
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        pq.write_table(content.empty_table(), path)
