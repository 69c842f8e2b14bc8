from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from furiosa_llm.artifact_builder.weights import (
    Shard,
    find_tensors,
    main_dtype,
    plan_shards,
    shard_chunks,
    shard_index,
)
from furiosa_llm.errors import ModelLoadError

TENSORS = {
    "embed": torch.randn(5, 3),
    "scalar": torch.tensor(2.5),
    "empty": torch.empty(0, 4),
    "half": torch.randn(3, dtype=torch.float16),
    "wide": torch.randn(2, 2, dtype=torch.float64),
    "ids": torch.arange(3),
    "mask": torch.tensor([True, False, True]),
    "tiny": torch.tensor([1.5, -2.0, 448.0]).to(torch.float8_e4m3fn),
}


def save(folder: Path, tensors: dict[str, torch.Tensor] | None = None) -> Path:
    save_file(TENSORS if tensors is None else tensors, folder / "model.safetensors")
    return folder


def write(shard: Shard, folder: Path) -> dict[str, torch.Tensor]:
    """Writes a shard and lets safetensors read it, which checks it."""
    path = folder / f"written-{shard.name}"
    path.write_bytes(b"".join(shard_chunks(shard)))
    loaded: dict[str, torch.Tensor] = load_file(path)
    return loaded


def rewritten(folder: Path, dtype: str, kept: tuple[str, ...] = ()) -> dict[str, torch.Tensor]:
    (shard,) = plan_shards(find_tensors(folder, dtype, kept))
    return write(shard, folder)


def test_auto_keeps_every_tensor_as_it_is(tmp_path: Path) -> None:
    loaded = rewritten(save(tmp_path), "auto")

    assert loaded.keys() == TENSORS.keys()
    for name, tensor in TENSORS.items():
        assert loaded[name].dtype == tensor.dtype
        assert torch.equal(loaded[name].to(torch.float64), tensor.to(torch.float64))


def test_a_cast_changes_wide_floats_and_nothing_else(tmp_path: Path) -> None:
    loaded = rewritten(save(tmp_path), "bfloat16")

    for name in ("embed", "scalar", "empty", "half", "wide"):
        assert loaded[name].dtype == torch.bfloat16
        assert torch.equal(loaded[name], TENSORS[name].to(torch.bfloat16))
    for name in ("ids", "mask", "tiny"):
        assert loaded[name].dtype == TENSORS[name].dtype


def test_a_tensor_of_many_chunks_is_cast_as_a_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("furiosa_llm.artifact_builder.weights._CHUNK_BYTES", 16)

    loaded = rewritten(save(tmp_path), "float32")

    for name in ("embed", "half", "wide"):
        assert torch.equal(loaded[name], TENSORS[name].to(torch.float32))


def test_named_tensors_are_not_cast(tmp_path: Path) -> None:
    loaded = rewritten(save(tmp_path), "bfloat16", kept=("emb", "^wide$"))

    assert (loaded["embed"].dtype, loaded["wide"].dtype) == (torch.float32, torch.float64)
    assert loaded["scalar"].dtype == torch.bfloat16


def test_a_value_that_float16_cannot_hold_is_not_made_infinite(tmp_path: Path) -> None:
    save(tmp_path, {"w": torch.tensor([1.0, 70000.0])})

    with pytest.raises(ModelLoadError, match="w has values that float16 cannot hold; use --dtype"):
        rewritten(tmp_path, "float16")


def test_a_value_that_is_infinite_already_stays_so(tmp_path: Path) -> None:
    save(tmp_path, {"w": torch.tensor([1.0, float("inf")])})

    assert rewritten(tmp_path, "float16")["w"].tolist() == [1.0, float("inf")]


def test_large_models_are_divided_among_files_with_an_index(tmp_path: Path) -> None:
    save(tmp_path, {f"w{index}": torch.full((10,), float(index)) for index in range(5)})

    shards = plan_shards(find_tensors(tmp_path, "auto"), max_bytes=90)

    assert [shard.name for shard in shards] == [
        "model-00001-of-00003.safetensors",
        "model-00002-of-00003.safetensors",
        "model-00003-of-00003.safetensors",
    ]
    assert [list(write(shard, tmp_path)) for shard in shards] == [
        ["w0", "w1"],
        ["w2", "w3"],
        ["w4"],
    ]
    assert shard_index(shards) == {
        "metadata": {"total_size": 200},
        "weight_map": {
            "w0": "model-00001-of-00003.safetensors",
            "w1": "model-00001-of-00003.safetensors",
            "w2": "model-00002-of-00003.safetensors",
            "w3": "model-00002-of-00003.safetensors",
            "w4": "model-00003-of-00003.safetensors",
        },
    }


def test_every_tensor_lies_at_a_multiple_of_its_items_size(tmp_path: Path) -> None:
    (shard,) = plan_shards(find_tensors(save(tmp_path), "auto"))
    content = b"".join(shard_chunks(shard))
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length])

    assert length % 8 == 0
    for name, tensor in TENSORS.items():
        assert header[name]["data_offsets"][0] % tensor.element_size() == 0


def test_a_tensor_in_two_files_is_refused(tmp_path: Path) -> None:
    for name in ("a.safetensors", "b.safetensors"):
        save_file({"w": torch.ones(1)}, tmp_path / name)
    index = {"weight_map": {"w": "a.safetensors", "v": "b.safetensors"}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))

    with pytest.raises(ModelLoadError, match=r"b\.safetensors: holds w, which a\.safetensors hold"):
        find_tensors(tmp_path, "auto")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("x", b"", "has neither model.safetensors nor model.safetensors.index.json, and pickled"),
        ("model.safetensors", b"12345", r"model\.safetensors: cannot be read as safetensors"),
        ("model.safetensors.index.json", b"{}", r"index\.json: cannot be read as an index"),
        (
            "model.safetensors.index.json",
            b'{"weight_map": {"w": "gone.safetensors"}}',
            r"gone\.safetensors: cannot be read as safetensors: No such file",
        ),
    ],
)
def test_weights_that_cannot_be_read_are_named(
    tmp_path: Path, name: str, content: bytes, message: str
) -> None:
    (tmp_path / name).write_bytes(content)

    with pytest.raises(ModelLoadError, match=message):
        find_tensors(tmp_path, "auto")


def test_a_file_that_shrinks_meanwhile_is_noticed(tmp_path: Path) -> None:
    (shard,) = plan_shards(find_tensors(save(tmp_path), "auto"))
    path = tmp_path / "model.safetensors"
    os.truncate(path, path.stat().st_size - 1)

    with pytest.raises(ModelLoadError, match="it was changed while it was read"):
        b"".join(shard_chunks(shard))


def test_the_type_of_a_model_is_that_of_most_weights(tmp_path: Path) -> None:
    assert main_dtype(find_tensors(save(tmp_path), "auto")) == "float32"
    assert main_dtype(find_tensors(tmp_path, "bfloat16")) == "bfloat16"
