from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from furiosa_llm_cli import machine
from furiosa_llm_cli.machine import Gpu
from tests.cli.cli_factories import invoke

TWO_GPUS = [
    Gpu(name="NVIDIA Big", memory_bytes=80 * 2**30),
    Gpu(name="NVIDIA Small", memory_bytes=24 * 2**30),
]


@pytest.fixture(autouse=True)
def _no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    set_gpus(monkeypatch, [])


def set_gpus(monkeypatch: pytest.MonkeyPatch, gpus: list[Gpu]) -> None:
    monkeypatch.setattr("furiosa_llm_cli.commands.collect_env.gpus", lambda: gpus)


def text_of(*args: str, **env: str) -> list[str]:
    """The lines, each with one space between its words."""
    outcome = invoke("collect-env", *args, env=env)
    assert (outcome.exit_code, outcome.stderr, outcome.exception) == (0, "", None)
    return [" ".join(line.split()) for line in outcome.stdout.splitlines()]


def json_of(*args: str, **env: str) -> Any:
    outcome = invoke("collect-env", "--json", *args, env=env)
    assert (outcome.exit_code, outcome.stderr, outcome.exception) == (0, "", None)
    return json.loads(outcome.stdout)


def mesh_lines(*args: str) -> list[str]:
    lines = text_of(*args)
    return lines[lines.index("Mesh") + 1 :]


def set_cpu_info(monkeypatch: pytest.MonkeyPatch, path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8")
    monkeypatch.setattr(machine, "_CPU_INFO", path)


def test_the_machine_comes_first_and_the_mesh_of_the_cpu_last() -> None:
    lines = text_of()

    headings = ["Machine", "Versions", "Environment", "Mesh"]
    assert [line for line in lines if line in headings] == headings
    assert "GPUs none" in lines
    assert mesh_lines() == [
        "devices cpu",
        "shape 1 replica x 1 stage x 1 rank",
        "all on cpu",
        "processes 1 for each stage",
    ]


def test_without_devices_the_mesh_is_that_of_all_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    set_gpus(monkeypatch, TWO_GPUS)
    lines = text_of("--tensor-parallel-size", "2")

    assert "cuda:0 NVIDIA Big, 80.0 GiB" in lines
    assert "cuda:1 NVIDIA Small, 24.0 GiB" in lines
    assert lines[lines.index("Mesh") + 1 :] == [
        "devices cuda",
        "shape 1 replica x 1 stage x 2 GPUs",
        "replica 0 cuda:0,cuda:1",
        "processes 2 for each stage",
    ]


def test_the_options_make_the_mesh() -> None:
    lines = mesh_lines(
        *("--devices", "npu:0, npu:1,npu:2", "--tensor-parallel-size", "4"),
        *("--pipeline-parallel-size", "2", "--data-parallel-size", "2"),
    )

    assert lines == [
        "devices npu:0, npu:1,npu:2",
        "note NPUs are emulated on this machine's CPU",
        "shape 2 replicas x 2 stages x 4 PEs",
        "replica 0 npu:0:0-3 | npu:1:0-3",
        "replica 1 npu:0:4-7 | npu:1:4-7",
        "not used npu:2",
        "processes 1 for each stage, 4 threads in each",
    ]


def test_json_holds_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    set_gpus(monkeypatch, TWO_GPUS)
    content = json_of(
        "--devices", "npu:0:0-1,npu:0:4", "--tensor-parallel-size", "2", HF_HOME="/models"
    )

    assert content["machine"]["usable_cores"] >= 1
    assert 0 < content["machine"]["free_memory_bytes"] < content["machine"]["memory_bytes"]
    assert content["gpus"][1] == {"name": "NVIDIA Small", "memory_bytes": 24 * 2**30}
    assert content["versions"]["torch"]
    assert content["environment"]["HF_HOME"] == "/models"
    assert content["mesh"] == {
        "devices": "npu:0:0-1,npu:0:4",
        "is_emulated": True,
        "data_parallel_size": 1,
        "pipeline_parallel_size": 1,
        "tensor_parallel_size": 2,
        "num_processes_per_stage": 1,
        "replicas": [[["npu:0:0", "npu:0:1"]]],
        "dropped": ["npu:0:4"],
    }


def test_gpus_are_those_that_torch_can_use(monkeypatch: pytest.MonkeyPatch) -> None:
    properties = [
        SimpleNamespace(name="A", total_memory=7),
        SimpleNamespace(name="B", total_memory=9),
    ]
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "get_device_properties", properties.__getitem__)

    assert machine.gpus() == [Gpu(name="A", memory_bytes=7), Gpu(name="B", memory_bytes=9)]

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert machine.gpus() == []


def test_environment_variables_are_shown_and_nothing_else_of_the_environment() -> None:
    outcome = invoke(
        "collect-env",
        env={"OMP_NUM_THREADS": "3", "XDG_CACHE_HOME": "/a\n\x1b[31mb", "HF_TOKEN": "hf_secret"},
    )

    assert "  OMP_NUM_THREADS       3\n" in outcome.stdout
    assert "  XDG_CACHE_HOME        /a \ufffd[31mb\n" in outcome.stdout
    assert "hf_secret" not in outcome.stdout


def test_a_variable_that_loading_torch_sets_is_shown_as_it_was(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("OMP_WAIT_POLICY", raising=False)

    assert "OMP_WAIT_POLICY not set" in text_of()


def test_the_features_of_the_processor_are_those_that_linux_tells(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    set_cpu_info(
        monkeypatch,
        tmp_path / "cpuinfo",
        "processor\t: 0\nmodel name\t: Some CPU\nvmx flags\t: fma\n"
        "flags\t\t: fpu avx2 avx512fp16 amx_bf16\n\nprocessor\t: 1\nflags\t\t: fma\n",
    )
    lines = text_of()

    assert "processor Some CPU" in lines
    assert "features avx2 amx_bf16 (not fma avx512f avx512_vnni avx512_bf16 amx_int8)" in lines
    assert json_of()["machine"]["cpu_features"]["amx_int8"] is False


def test_the_features_of_another_processor_are_unknown(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    set_cpu_info(monkeypatch, tmp_path / "cpuinfo", "processor\t: 0\nFeatures\t: fp asimd\n")

    assert "features unknown" in text_of()
    assert json_of()["machine"]["cpu_features"] is None


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--devices", "npu:0:8"], "device 'npu:0:8': the PE index 8 is out of range; "),
        (["--devices", ""], "device '': the device string is empty; "),
        (["--devices", "cuda"], "device 'cuda': no GPU was found on this machine; use cpu"),
        (["--devices", "cpu:9999"], "device 'cpu:9999' is not on this machine or not for this "),
        (["--data-parallel-size", "0"], "data_parallel_size must be at least 1, got 0"),
        (
            ["--devices", "npu:0", "--data-parallel-size", "2"],
            "Not enough devices to run the model. 16 PEs are required. ",
        ),
    ],
)
def test_a_mesh_that_cannot_be_is_one_clear_line(args: list[str], message: str) -> None:
    outcome = invoke("collect-env", *args)

    assert (outcome.exit_code, outcome.stdout) == (2, "")
    assert outcome.stderr.startswith("Error: " + message)
    assert outcome.stderr.count("\n") == 1
