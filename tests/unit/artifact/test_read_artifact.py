from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from furiosa_llm.artifact.contents import Bucket, RuntimeConfig
from furiosa_llm.artifact.reading import SMALL_FILE_BYTES, is_artifact, read_artifact
from furiosa_llm.errors import ModelLoadError
from tests.unit.artifact.artifact_factories import WEIGHTS, edit_json, write_artifact

RUNTIME = RuntimeConfig(
    dtype="bfloat16",
    max_model_len=512,
    prefill_buckets=(Bucket(1, 128), Bucket(4, 64)),
    decode_buckets=(Bucket(8, 512),),
    max_num_seqs=8,
    spare_blocks_ratio=0.25,
    is_offline=False,
)
AGAIN = "; copy the folder again, or build it again"
FULL: dict[str, Any] = {"devices": "npu:0", "tensor_parallel_size": 4, "data_parallel_size": 2}


def flip_byte(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


def refusal(folder: Path, **settings: Any) -> str:
    with pytest.raises(ModelLoadError) as caught:
        read_artifact(folder, **settings)
    text = str(caught.value)
    assert "\n" not in text
    return text.replace(f"{folder}/", "")


def test_an_artifact_reads_back_as_it_was_written(tmp_path: Path) -> None:
    written = write_artifact(tmp_path / "a", RUNTIME, **FULL)

    assert read_artifact(tmp_path / "a", verify=True) == written


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda a: (a / "artifact.json").unlink(), f"artifact.json: is missing{AGAIN}"),
        (lambda a: (a / WEIGHTS).unlink(), f"model.safetensors: is missing{AGAIN}"),
        (lambda a: (a / "runtime_config.json").unlink(), f"runtime_config.json: is missing{AGAIN}"),
        (
            lambda a: (a / WEIGHTS).write_bytes(b""),
            f"model.safetensors: has 0 bytes where 1 were written{AGAIN}",
        ),
        (
            lambda a: flip_byte(a / "config.json"),
            f"config.json: was changed since the artifact was built{AGAIN}",
        ),
        (
            lambda a: flip_byte(a / "runtime_config.json"),
            f"runtime_config.json: was changed since the artifact was built{AGAIN}",
        ),
        (
            lambda a: (a / "artifact.json").write_text("{"),
            "artifact.json: is not JSON (Expecting property name enclosed in double quotes: "
            f"line 1 column 2 (char 1)){AGAIN}",
        ),
        (
            lambda a: (a / "artifact.json").write_text("{}"),
            'artifact.json: is not of the format "furiosa-llm-artifact"; give a folder that '
            "furiosa-llm build wrote, or the checkpoint that this one was made from",
        ),
        (
            lambda a: (a / "artifact.json").write_text("[]"),
            'artifact.json: is not of the format "furiosa-llm-artifact"; give a folder that '
            "furiosa-llm build wrote, or the checkpoint that this one was made from",
        ),
        (
            lambda a: edit_json(a / "artifact.json", version=2),
            "artifact.json: is of version 2, but this program reads versions up to 1; update the "
            "program, or build the artifact again with this one",
        ),
    ],
)
def test_a_damage_is_one_line_that_names_the_file_and_what_to_do(
    tmp_path: Path, damage: Callable[[Path], object], message: str
) -> None:
    write_artifact(tmp_path / "a", RUNTIME)
    damage(tmp_path / "a")

    assert refusal(tmp_path / "a") == message


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"version": "1"}, "version must be a whole number from 1, got '1'"),
        ({"version": 0}, "version must be a whole number from 1, got 0"),
        ({"version": True}, "version must be a whole number from 1, got True"),
        ({"version": ...}, "version must be a whole number from 1, got None"),
        ({"name": ...}, "name is missing"),
        ({"name": 7}, "name must be str, got 7"),
        ({"colour": "red"}, "'colour' is unknown"),
        ({"num_parameters": 1.5}, "num_parameters must be int, got 1.5"),
        ({"tensor_parallel_size": True}, "tensor_parallel_size must be int | None, got True"),
        ({"tensor_parallel_size": 0}, "tensor_parallel_size must be at least 1, got 0"),
        ({"files": {}}, "files must be a list, got {}"),
        ({"files": [3]}, "must hold names and values, got 3"),
        ({"files": [{"name": "x", "num_bytes": 1}]}, "hash is missing"),
        (
            {"files": [{"name": "../x", "num_bytes": 1, "hash": ""}]},
            "files names '../x', which is not in the folder",
        ),
        (
            {"files": [{"name": "/etc/passwd", "num_bytes": 1, "hash": ""}]},
            "files names '/etc/passwd', which is not in the folder",
        ),
        ({"files": []}, "files does not name runtime_config.json"),
    ],
)
def test_a_wrong_value_in_artifact_json_is_named(
    tmp_path: Path, changes: dict[str, object], message: str
) -> None:
    write_artifact(tmp_path / "a")
    edit_json(tmp_path / "a" / "artifact.json", **changes)

    assert refusal(tmp_path / "a") == f"artifact.json: {message}{AGAIN}"


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"is_offline": 1}, "is_offline must be bool | None, got 1"),
        ({"max_num_seqs": -3}, "max_num_seqs must be at least 1, got -3"),
        ({"spare_blocks_ratio": 1}, "spare_blocks_ratio must be in [0, 1), got 1"),
        ({"dtype": "int4"}, "dtype must be one of auto, float32, bfloat16, float16, got 'int4'"),
        ({"quantization": "int2"}, "quantization must be one of int8, fp8, int4, got 'int2'"),
        ({"prefill_buckets": 4}, "prefill_buckets must be a list, got 4"),
        ({"prefill_buckets": [[4]]}, "prefill_buckets must hold [batch, length], got [4]"),
        ({"decode_buckets": [[4, "8"]]}, "decode_buckets must hold [batch, length], got [4, '8']"),
        ({"decode_buckets": [[0, 8]]}, "batch and length of a bucket must be at least 1, got 0,8"),
    ],
)
def test_a_wrong_value_in_runtime_config_json_is_named(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    values: dict[str, object],
    message: str,
) -> None:
    def with_values(runtime: RuntimeConfig) -> dict[str, object]:
        del runtime
        content: dict[str, object] = {
            "dtype": "auto",
            "quantization": None,
            "max_model_len": None,
            "max_num_seqs": None,
            "max_num_batched_tokens": None,
            "prefill_buckets": [],
            "decode_buckets": [],
            "prefill_chunk_size": None,
            "paged_attention_num_blocks": None,
            "npu_queue_limit": None,
            "max_processing_samples": None,
            "spare_blocks_ratio": None,
            "is_offline": None,
        }
        return content | values

    monkeypatch.setattr("tests.unit.artifact.artifact_factories.runtime_json", with_values)
    write_artifact(tmp_path / "a")

    assert refusal(tmp_path / "a") == f"runtime_config.json: {message}{AGAIN}"


def test_large_files_are_compared_only_when_asked_for(tmp_path: Path) -> None:
    write_artifact(tmp_path / "a", weights=bytes(SMALL_FILE_BYTES))
    flip_byte(tmp_path / "a" / WEIGHTS)

    read_artifact(tmp_path / "a")
    assert refusal(tmp_path / "a", verify=True) == (
        f"model.safetensors: was changed since the artifact was built{AGAIN}"
    )


def test_a_large_file_that_is_cut_short_is_noticed_in_any_case(tmp_path: Path) -> None:
    write_artifact(tmp_path / "a", weights=bytes(SMALL_FILE_BYTES))
    with (tmp_path / "a" / WEIGHTS).open("rb+") as file:
        file.truncate(SMALL_FILE_BYTES - 1)

    assert re.match(r"model.safetensors: has 16,777,215 bytes where", refusal(tmp_path / "a"))


def test_a_folder_is_an_artifact_although_one_of_its_descriptions_is_lost(tmp_path: Path) -> None:
    write_artifact(tmp_path / "a")
    (tmp_path / "a" / "artifact.json").unlink()

    assert is_artifact(tmp_path / "a")
    assert not is_artifact(tmp_path)
    assert not is_artifact(tmp_path / "nothing")
