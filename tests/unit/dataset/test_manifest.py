from __future__ import annotations

import json
import platform
import re
from pathlib import Path

import pytest

from furiosa_llm.dataset.hashing import hash_file, hash_model, hash_text, hash_tokenizer
from furiosa_llm.dataset.manifest import InputFile, Manifest, describe_inputs
from furiosa_llm.dataset.reader import open_input
from furiosa_llm.errors import DatasetError
from furiosa_llm.sampling_params import SamplingParams
from tests.unit.dataset.dataset_factories import run_python


def write_checkpoint(folder: Path, *, weight: bytes = b"w", config: str = "{}") -> Path:
    folder.mkdir(exist_ok=True)
    header = b'{"a": {"shape": [1]}}'
    (folder / "config.json").write_text(config)
    (folder / "model.safetensors").write_bytes(
        len(header).to_bytes(8, "little") + header + weight * 300_000
    )
    (folder / "tokenizer.json").write_text("tokens")
    return folder


def test_a_manifest_is_json_that_says_what_the_run_was() -> None:
    manifest = Manifest(
        model="m",
        options={"block_size": 32, "paths": (Path("a"),)},
        sampling_params=SamplingParams(temperature=0.5),
        seed=7,
    )

    content = json.loads(manifest.to_json())

    assert content["options"] == {"block_size": 32, "paths": ["a"]}
    assert content["sampling_params"]["temperature"] == 0.5
    assert (content["seed"], content["ended_at"]) == (7, None)
    assert content["versions"]["python"] == platform.python_version()
    assert set(content["versions"]) >= {"furiosa-llm-cli", "torch", "transformers", "pyarrow"}
    assert re.fullmatch(r"20\d\d-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}\+00:00", content["started_at"])


def test_a_run_that_ended_has_its_counts_and_the_same_start() -> None:
    start = Manifest(model="m")

    end = start.ended({"answered": 2})

    assert end.started_at == start.started_at
    assert end.ended_at is not None
    assert end.ended_at >= end.started_at
    assert end.metadata() == {"furiosa_llm.manifest": end.to_json()}
    assert json.loads(end.to_json())["counts"] == {"answered": 2}


@pytest.mark.parametrize(
    "name", ["token", "hf_token", "HF-TOKEN", "password", "client_secret", "api_key", "apiKey"]
)
def test_secrets_are_hidden_at_any_depth(name: str) -> None:
    manifest = Manifest(model="m", options={"a": [{name: "hush"}]})

    assert "hush" not in manifest.to_json()
    assert manifest.to_dict()["options"] == {"a": [{name: "***"}]}


def test_options_about_tokens_are_no_secrets() -> None:
    options = {"max_tokens": 5, "stop_token_ids": [1], "tokenizer": "t", "hf_token": None}

    assert Manifest(model="m", options=options).to_dict()["options"] == options


def test_urls_lose_their_passwords_and_queries() -> None:
    manifest = Manifest(
        model="https://me:hush@host/a/b?sig=hush&x=1", options={"x": "s3://b/k?v=1 y"}
    )

    assert manifest.to_dict()["model"] == "https://host/a/b"
    assert manifest.to_dict()["options"] == {"x": "s3://b/k y"}


def test_inputs_are_described_with_size_and_hash(tmp_path: Path) -> None:
    (tmp_path / "b.jsonl").write_bytes(b"{}\n")
    (tmp_path / "a.jsonl").write_bytes(b"")

    described = describe_inputs(open_input(str(tmp_path)))

    assert described == (
        InputFile(path=f"{tmp_path}/a.jsonl", num_bytes=0, hash=hash_text("")),
        InputFile(path=f"{tmp_path}/b.jsonl", num_bytes=3, hash=hash_text("{}\n")),
    )
    assert describe_inputs(open_input("-")) == (InputFile(path="-"),)


def test_the_hash_of_a_model_changes_with_its_weights_and_its_configuration(tmp_path: Path) -> None:
    first = hash_model(write_checkpoint(tmp_path / "a"))

    assert hash_model(write_checkpoint(tmp_path / "b")) == first
    assert hash_model(write_checkpoint(tmp_path / "c", weight=b"v")) != first
    assert hash_model(write_checkpoint(tmp_path / "d", config="{ }")) != first
    (tmp_path / "b" / "more.safetensors").write_bytes(b"")
    assert hash_model(tmp_path / "b") != first


def test_the_hash_of_a_tokenizer_is_its_own(tmp_path: Path) -> None:
    first = hash_tokenizer(write_checkpoint(tmp_path / "a"))
    other = write_checkpoint(tmp_path / "b", weight=b"v")

    assert hash_tokenizer(other) == first
    (other / "tokenizer.json").write_text("others")
    assert hash_tokenizer(other) != first


def test_the_hash_of_a_model_covers_what_ends_its_answers(tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path / "a")
    before = hash_model(folder)
    (folder / "generation_config.json").write_text('{"eos_token_id": 7}')

    assert hash_model(folder) != before


@pytest.mark.parametrize("name", ["tokenizer_config.json", "chat_template.jinja", "merges.txt"])
def test_the_hash_of_a_tokenizer_covers_each_of_its_files(tmp_path: Path, name: str) -> None:
    folder = write_checkpoint(tmp_path / "a")
    before = hash_tokenizer(folder)
    (folder / name).write_text("other")

    assert hash_tokenizer(folder) != before


def test_the_hash_of_a_very_big_model_tells_how_long_its_files_are(tmp_path: Path) -> None:
    folders = [write_checkpoint(tmp_path / name) for name in "ab"]
    for folder, size in zip(folders, (2**30, 2**30 + 64), strict=True):
        with (folder / "model.bin").open("wb") as file:
            file.truncate(size)

    assert hash_model(folders[0]) != hash_model(folders[1])


def test_a_hub_id_has_no_hash() -> None:
    assert hash_model(Path("org/name")) is None
    assert hash_tokenizer(Path("org/name")) is None


def test_a_very_big_file_is_hashed_by_samples(tmp_path: Path) -> None:
    path = tmp_path / "big.jsonl"
    with path.open("wb") as file:
        file.truncate((1 << 30) + 5)

    first = hash_file(path)
    with path.open("r+b") as file:
        file.seek(1 << 30)
        file.write(b"x")

    assert first.startswith("blake2b-sampled:")
    assert hash_file(path) != first


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match=r"none\.jsonl: cannot be read: No such file"):
        hash_file(tmp_path / "none.jsonl")


def test_this_layer_loads_neither_torch_nor_datasets() -> None:
    code = (
        "import sys, furiosa_llm.dataset.writer, furiosa_llm.dataset.step_stats\n"
        "from furiosa_llm.dataset.manifest import Manifest\n"
        "Manifest(model='m').to_json()\n"
        "print({'torch', 'transformers', 'datasets', 'jinja2', 'pandas'} & set(sys.modules))"
    )

    assert run_python(code) == "set()\n"
