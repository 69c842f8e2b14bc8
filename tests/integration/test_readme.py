"""The Python examples of the README and of docs/python.md run as they stand."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
EXAMPLE = re.compile(r"^```python\n(.*?)^```", re.M | re.S)
PAGES = ("README.md", "docs/python.md")
EXAMPLES = [
    example for page in PAGES for example in EXAMPLE.findall((ROOT / page).read_text("utf-8"))
]
PRINTED = [
    "Add 67 and 4. 71\nCompute 29 - 82. -53\n",
    "Add 67 and 4. 71\nCompute 29 - 82. -53\n42\n",
    "42 True\n",  # a slow reader misses outputs before the last
    "42",
]


@pytest.mark.parametrize(("example", "printed"), list(zip(EXAMPLES, PRINTED, strict=True)))
def test_an_example_prints_what_it_should(
    example: str,
    printed: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(ROOT)

    exec(compile(example, "an example", "exec"), {"__name__": "__main__"})

    assert capsys.readouterr().out.endswith(printed)
