"""A pickle can hold code, so weights are loaded from safetensors unless a user says otherwise."""

from __future__ import annotations

import json
import os
import pickle
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from furiosa_llm.artifact_builder.build import build_artifact
from furiosa_llm.artifact_builder.options import BuildOptions
from furiosa_llm.errors import ModelLoadError
from furiosa_llm.modeling.loader import LoadedModel, load_model
from tests.cli.cli_factories import invoke

SAMPLES = Path(__file__).parents[2] / "samples"
TINY = SAMPLES / "tiny-llama"


class Payload:
    """What runs a command when it is unpickled."""

    def __init__(self, trace: Path) -> None:
        self._trace = trace

    def __reduce__(self) -> tuple[object, ...]:
        return os.mkdir, (str(self._trace),)


@pytest.fixture
def pickled(tmp_path: Path) -> Path:
    """The embedded model with its weights as a pickle."""
    folder = tmp_path / "pickled"
    folder.mkdir()
    for file in TINY.iterdir():
        if file.name != "model.safetensors":
            (folder / file.name).write_bytes(file.read_bytes())
    torch.save(load_file(TINY / "model.safetensors"), folder / "pytorch_model.bin")
    return folder


def load(folder: Path, *, allow_pickle: bool = False) -> LoadedModel:
    return load_model(str(folder), dtype=torch.float32, allow_pickle=allow_pickle)


def test_pickled_weights_are_refused_by_name(pickled: Path) -> None:
    (pickled / "extra.pth").write_bytes(b"")

    with pytest.raises(ModelLoadError) as refusal:
        load(pickled)

    assert str(refusal.value) == (
        f"{pickled}: has only pickled weights (extra.pth, pytorch_model.bin), and a pickle can run "
        "code; convert them to safetensors with transformers' save_pretrained, or trust them with "
        "--allow-pickle"
    )


def test_run_refuses_them_with_exit_code_5(pickled: Path, tmp_path: Path) -> None:
    rows, out = SAMPLES / "prompts.jsonl", tmp_path / "out.parquet"

    outcome = invoke("run", "-m", str(pickled), "-i", str(rows), "-o", str(out))

    assert outcome.exit_code == 5
    assert "has only pickled weights (pytorch_model.bin)" in outcome.stderr
    assert not out.exists()


def test_they_are_loaded_on_request_and_are_the_same_weights(pickled: Path) -> None:
    ours, expected = load(pickled, allow_pickle=True), load(TINY)

    for name, weight in expected.model.state_dict().items():
        assert torch.equal(ours.model.state_dict()[name], weight), name


def test_code_in_a_pickle_never_runs(pickled: Path, tmp_path: Path) -> None:
    trace = tmp_path / "trace"
    with (pickled / "pytorch_model.bin").open("wb") as file:
        pickle.dump({"weight": Payload(trace)}, file, protocol=2)

    for allow_pickle in (False, True):
        with pytest.raises(ModelLoadError) as refusal:
            load(pickled, allow_pickle=allow_pickle)
        assert "\n" not in str(refusal.value)

    assert not trace.exists()


def test_safetensors_win_over_pickles(pickled: Path) -> None:
    (pickled / "model.safetensors").write_bytes((TINY / "model.safetensors").read_bytes())
    (pickled / "pytorch_model.bin").write_bytes(b"damaged")

    assert load(pickled).num_parameters == load(pickled, allow_pickle=True).num_parameters


@pytest.mark.parametrize("name", ["pytorch_model.bin", "../model.safetensors", "/x.safetensors"])
def test_an_index_names_safetensors_in_the_folder_only(pickled: Path, name: str) -> None:
    index = {"weight_map": {"model.embed_tokens.weight": name}}
    (pickled / "model.safetensors.index.json").write_text(json.dumps(index))

    with pytest.raises(ModelLoadError, match=r"no \.safetensors file beside it"):
        load(pickled)


def test_a_config_cannot_name_a_pickle(pickled: Path) -> None:
    config = json.loads((pickled / "config.json").read_text())
    config["transformers_weights"] = "adapter_model.bin"
    (pickled / "config.json").write_text(json.dumps(config))

    with pytest.raises(ModelLoadError, match=r"pickled weights \(adapter_model\.bin\)"):
        load(pickled)


def test_no_artifact_is_built_from_pickles(pickled: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelLoadError, match="pickled weights are not built from"):
        build_artifact(str(pickled), tmp_path / "artifact", BuildOptions())
