"""The README's Python examples run as they stand, one after the other."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
EXAMPLES = re.findall(
    r"^```python\n(.*?)^```", (ROOT / "README.md").read_text("utf-8"), re.M | re.S
)
PRINTED = (
    ("from furiosa_llm import LLM,", "Add 67 and 4. 71\nCompute 29 - 82. -53\n42\n"),
    ("import asyncio\n", "42 True\n"),  # a slow reader misses outputs before the last
    ("from furiosa_llm import EngineArgs, LLMEngine,", "42"),
)


def test_every_example_is_run() -> None:
    assert len(EXAMPLES) == len(PRINTED)


@pytest.mark.parametrize(("beginning", "printed"), PRINTED)
def test_an_example_prints_what_it_should(
    beginning: str,
    printed: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(ROOT)
    [example] = [text for text in EXAMPLES if text.startswith(beginning)]

    exec(compile(example, "README.md", "exec"), {"__name__": "__main__"})

    assert capsys.readouterr().out.endswith(printed)
