from __future__ import annotations

import gzip
import json
import os
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from furiosa_llm.dataset.hub_input import HubDataset
from furiosa_llm.dataset.reader import open_input
from furiosa_llm.errors import DatasetError


def write_jsonl(path: Path, *prompts: str) -> None:
    lines = "".join(f'{{"prompt": "{prompt}"}}\n' for prompt in prompts).encode()
    path.write_bytes(gzip.compress(lines) if path.suffix == ".gz" else lines)


def write_parquet(path: Path, *prompts: str) -> None:
    pq.write_table(pa.table({"prompt": list(prompts)}), path)


def prompts_of(source: str) -> list[object]:
    rows = list(open_input(source).rows())
    assert [row.row_index for row in rows] == list(range(len(rows)))
    return [row.data and row.data["prompt"] for row in rows]


def test_the_files_of_a_glob_are_read_in_order_of_their_names(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "b.jsonl", "3")
    write_parquet(tmp_path / "a.parquet", "1", "2")
    write_jsonl(tmp_path / "c.jsonl.gz", "4")

    assert prompts_of(str(tmp_path / "*")) == ["1", "2", "3", "4"]


def test_a_folder_gives_the_files_that_can_be_read(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "b.JSONL", "2")
    write_parquet(tmp_path / "a.parquet", "1")
    for name in ("README.md", ".hidden.jsonl", "_manifest.jsonl"):
        (tmp_path / name).write_text("no rows")

    source = open_input(str(tmp_path))

    assert prompts_of(str(tmp_path)) == ["1", "2"]
    assert source.paths == (tmp_path / "a.parquet", tmp_path / "b.JSONL")
    assert (source.num_rows, source.count_rows()) == (None, 2)


def test_a_folder_gives_the_files_of_its_sub_folders_too(tmp_path: Path) -> None:
    for name in ("b/y=1/c", "b/y=2", "d", "a.parts", ".cache", "_delta_log", "output"):
        (tmp_path / name).mkdir(parents=True)
        write_jsonl(tmp_path / name / "rows.jsonl", name)
    write_jsonl(tmp_path / "c.jsonl", "c")
    (tmp_path / "output" / "_manifest.json").write_text("{}")

    assert prompts_of(str(tmp_path)) == ["b/y=1/c", "b/y=2", "c", "d"]
    assert prompts_of(str(tmp_path / "output")) == ["output"]


def test_a_pipe_is_read_as_jsonl() -> None:
    reading, writing = os.pipe()
    with os.fdopen(writing, "wb") as pipe:
        pipe.write(b'{"prompt": "a"}\n')

    prompts = prompts_of(f"/dev/fd/{reading}")
    os.close(reading)

    assert prompts == ["a"]


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("none.jsonl", "none.jsonl does not exist; give a file, a folder, a glob, - for"),
        ("*.jsonl", r"\*.jsonl matches no file"),
        ("empty", "empty holds no file that ends in .jsonl"),
        ("data.csv", "data.csv is of an unknown format; its name must end in .jsonl"),
        ("dangling.ndjson", "leads nowhere"),
        ("bad.parquet", "bad.parquet: cannot be read as Parquet: "),
        ("", "the name of the input is empty"),
        ("datasets:", "no dataset is named"),
        ("datasets:a:b:c:d", r"too many colons; write datasets:NAME\[:\[CONFIG:\]SPLIT\]"),
    ],
)
def test_an_input_that_cannot_be_opened_says_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, source: str, message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    (tmp_path / "data.csv").write_text("a,b")
    (tmp_path / "bad.parquet").write_bytes(b"PAR1 no PAR1")
    (tmp_path / "dangling.ndjson").symlink_to("nowhere")

    with pytest.raises(DatasetError, match=message) as caught:
        open_input(source)

    assert "\n" not in str(caught.value)


def test_a_name_with_glob_characters_that_exists_is_that_file(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "a[1].jsonl", "x")

    assert prompts_of(str(tmp_path / "a[1].jsonl")) == ["x"]


@pytest.mark.filterwarnings("ignore")  # of the libraries under `datasets`
def test_the_datasets_library_opens_what_it_knows(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "train.jsonl", "a", "b")

    assert prompts_of(f"datasets:{tmp_path}") == ["a", "b"]
    with pytest.raises(DatasetError, match=rf"^datasets:{tmp_path}:test cannot be read: "):
        list(open_input(f"datasets:{tmp_path}:test").rows())


@pytest.mark.filterwarnings("ignore")  # of the libraries under `datasets`
def test_a_dataset_may_have_configurations(tmp_path: Path) -> None:
    configs = []
    for name in ("main", "other"):
        write_jsonl(tmp_path / f"{name}.jsonl", name)
        files = [{"split": split, "path": f"{name}.jsonl"} for split in ("train", "test")]
        configs.append({"config_name": name, "data_files": files})
    (tmp_path / "README.md").write_text(f"---\nconfigs: {json.dumps(configs)}\n---\n")

    assert prompts_of(f"datasets:{tmp_path}:main:test") == ["main"]
    assert prompts_of(f"datasets:{tmp_path}:other:") == ["other"]
    with pytest.raises(DatasetError, match=rf"^datasets:{tmp_path}:test cannot be read: .*main"):
        list(open_input(f"datasets:{tmp_path}:test").rows())


@pytest.mark.parametrize(
    ("source", "parts"),
    [
        ("datasets:owner/name", ("owner/name", None, "train")),
        ("datasets:owner/name:", ("owner/name", None, "train")),
        ("datasets:owner/name:test[:10]", ("owner/name", None, "test[:10]")),
        ("datasets:owner/name:main:test[:10]", ("owner/name", "main", "test[:10]")),
    ],
)
def test_a_named_dataset_has_a_configuration_and_a_split(
    source: str, parts: tuple[str, str | None, str]
) -> None:
    dataset = HubDataset.parse(source)

    assert (dataset.name, dataset.config, dataset.split) == parts
    assert HubDataset.parse(dataset.source) == dataset


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.parquet"])
def test_a_row_knows_about_how_long_it_is(tmp_path: Path, name: str) -> None:
    rows = [{"prompt": "a" * 1000, "ids": list(range(100))}] * 3
    if name.endswith(".parquet"):
        pq.write_table(pa.Table.from_pylist(rows), tmp_path / name)
    else:
        (tmp_path / name).write_text("".join(json.dumps(row) + "\n" for row in rows))

    sizes = [row.num_bytes for row in open_input(str(tmp_path / name)).rows()]

    assert len(sizes) == 3
    assert all(1300 <= size <= 2500 for size in sizes)
