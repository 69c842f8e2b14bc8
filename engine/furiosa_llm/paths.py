"""What lies at a path, also where nobody may look, or no file can have such a name."""

from __future__ import annotations

from pathlib import Path


def is_there(path: str | Path) -> bool:
    """Tells whether something can be seen to be there."""
    try:
        return Path(path).exists()
    except OSError:
        return False


def is_folder(path: str | Path) -> bool:
    """Tells whether a folder can be seen to be there."""
    try:
        return Path(path).is_dir()
    except OSError:
        return False
