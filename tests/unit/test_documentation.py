from __future__ import annotations

import re
from pathlib import Path

import pytest

from benchmarks.overview import render
from benchmarks.results import FOLDER, read_sessions

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", ROOT / "CHANGELOG.md", *sorted(ROOT.glob("docs/*.md"))]
LINK = re.compile(r"\]\((?!https?:|#)([^)#]+)")
TEST_FILE = re.compile(r"`(tests/[\w/]+\.py)`")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_a_page_links_to_files_that_exist(page: Path) -> None:
    assert [
        link for link in LINK.findall(page.read_text()) if not (page.parent / link).exists()
    ] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_a_page_names_tests_that_exist(page: Path) -> None:
    assert [
        name for name in TEST_FILE.findall(page.read_text()) if not (ROOT / name).exists()
    ] == []


def test_the_readme_links_every_page() -> None:
    linked = LINK.findall((ROOT / "README.md").read_text())

    assert {f"docs/{page.name}" for page in ROOT.glob("docs/*.md")} <= set(linked)


def test_the_readme_has_the_seconds_that_were_measured() -> None:
    assert render(read_sessions(FOLDER)) in (ROOT / "README.md").read_text()
