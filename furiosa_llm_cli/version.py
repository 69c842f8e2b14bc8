"""Which version of the program this is."""

from __future__ import annotations

import importlib.metadata
import tomllib
from pathlib import Path

DISTRIBUTION = "furiosa-llm-cli"


def program_version() -> str:
    """Returns the installed version, or that of the checkout which runs without installation."""
    installed = installed_version(DISTRIBUTION)
    if installed is not None:
        return installed
    pyproject = Path(__file__).resolve().parents[1] / "pyproject.toml"
    if not pyproject.is_file():
        return "unknown"
    project = tomllib.loads(pyproject.read_text(encoding="utf-8"))["project"]
    return f"{project['version']} (not installed)"


def installed_version(distribution: str) -> str | None:
    """Returns the version of a distribution without importing it; None if it is not there."""
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None
