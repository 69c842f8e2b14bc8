from __future__ import annotations

import logging
from pathlib import Path

import numba
import pytest

from furiosa_llm.modeling.cpu.kernel_cache import keep_compiled


@numba.njit
def double(number: int) -> int:
    return 2 * number


@numba.njit
def triple(number: int) -> int:
    return 3 * number


@numba.njit
def quadruple(number: int) -> int:
    return 4 * number


def test_compiled_code_lies_in_the_cache_folder(tmp_path: Path) -> None:
    keep_compiled([double], str(tmp_path / "new"))

    assert double(4) == 8
    assert [path.suffix for path in sorted(tmp_path.rglob("*.nb*"))] == [".nbc", ".nbi"]


def test_only_the_first_start_says_that_it_compiles(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO):
        keep_compiled([], str(tmp_path))
        keep_compiled([], str(tmp_path))

    assert caplog.text.count("compiling kernels for this processor, once") == 1
    assert str(tmp_path) in caplog.text


def test_without_a_cache_folder_nothing_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("numba.core.config.CACHE_DIR", str(tmp_path))

    keep_compiled([triple], None)

    assert triple(4) == 12
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_written_costs_no_answer(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    file = tmp_path / "file"
    file.write_text("")

    with caplog.at_level(logging.WARNING):
        keep_compiled([quadruple], str(file))

    assert quadruple(4) == 16
    assert "kernels are not kept" in caplog.text
