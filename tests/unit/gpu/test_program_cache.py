from __future__ import annotations

import os
from pathlib import Path

import pytest

from furiosa_llm.modeling.gpu.program_cache import keep_programs

VARIABLE = "TRITON_CACHE_DIR"


@pytest.fixture(autouse=True)
def no_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, "")  # so that it is put back
    monkeypatch.delenv(VARIABLE)


def test_programs_lie_beside_the_kernels_of_a_cpu(tmp_path: Path) -> None:
    keep_programs(str(tmp_path))

    assert os.environ[VARIABLE] == str(tmp_path / "triton")


def test_without_a_cache_folder_programs_go_with_the_process() -> None:
    keep_programs(None)

    assert Path(os.environ[VARIABLE]).is_dir()
    assert "furiosa-llm-triton-" in os.environ[VARIABLE]


def test_what_the_environment_says_comes_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, "/elsewhere")

    keep_programs(None)

    assert os.environ[VARIABLE] == "/elsewhere"
