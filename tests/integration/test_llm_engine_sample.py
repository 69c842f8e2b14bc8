"""`samples/llm_engine.py` as a real process."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

from furiosa_llm.config import EngineArgs
from furiosa_llm.options import options_of
from samples import llm_engine

ROOT = Path(__file__).parents[2]
ARGUMENTS = ("--model", "samples/tiny-llama", "--devices", "npu:0")
PATHS = os.pathsep.join([str(ROOT / "engine"), str(ROOT)])


def test_the_sample_prints_an_answer_to_each_of_its_prompts() -> None:
    result = subprocess.run(
        [sys.executable, "samples/llm_engine.py", *ARGUMENTS],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": PATHS, "OMP_NUM_THREADS": "1"},
        check=False,
    )

    assert result.returncode == 0, result.stderr
    printed = [line.split(" -> ") for line in sorted(result.stdout.splitlines())]
    assert [question for question, _ in printed] == [
        "0: 'A robot may not injure a human being'",
        "1: 'To be or not to be,'",
        "2: 'What is the meaning of life?'",
    ]
    assert all(isinstance(ast.literal_eval(answer), str) for _, answer in printed)


def test_the_sample_takes_every_option_of_the_engine(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", ["llm_engine.py", "--help"])

    with pytest.raises(SystemExit, match=r"^0$"):
        llm_engine.main()

    printed = capsys.readouterr().out
    assert "Demo on using the LLMEngine class directly" in printed
    assert all(option.flag in printed for option in options_of(EngineArgs))


def test_a_wrong_option_is_one_line_and_exit_code_2(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", ["llm_engine.py", "--model", "m", "--devices", "npu:0:0-2"])

    with pytest.raises(SystemExit, match=r"^2$"):
        llm_engine.main()

    assert "npu:0:0-2" in capsys.readouterr().err.splitlines()[-1]
