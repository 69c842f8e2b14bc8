"""Keeps secrets out of what is written down about a run."""

from __future__ import annotations

import dataclasses
import enum
import re
from collections.abc import Mapping
from pathlib import PurePath

HIDDEN = "***"

# `max_tokens` and `stop_token_ids` are no secrets: the word has to stand at the end.
_SECRET_NAME = re.compile(
    r"(token|password|passwd|passphrase|secret|credentials?|authorization"
    r"|(api|access|private|secret)[_-]?key)$",
    re.IGNORECASE,
)
# A path of Python's has one of the two slashes. What comes before the last @ is a user's.
_URL = re.compile(
    r"\b([a-z][a-z0-9+.-]+:/{1,2})(?:[^/\s?#]*@)?([^\s?#]*)(?:\?[^\s#]*)?(?:#\S*)?", re.IGNORECASE
)
_NAMED_VALUE = re.compile(
    r"\b(x-amz-[a-z-]+|(?:access_?|auth_?)?token|sig|signature|password|passwd|secret|api_?key)="
    r"[^&\s\"']+",
    re.IGNORECASE,
)
_BEARER = re.compile(r"\b(bearer\s+)[\w.~+/=-]{8,}", re.IGNORECASE)
_TOKEN = re.compile(
    r"\b(hf_[A-Za-z0-9]{10,}|sk-[\w-]{16,}|gh[opsru]_[A-Za-z0-9]{20,}|AKIA[0-9A-Z]{16})\b"
)


def redacted_text(text: str) -> str:
    """Returns a text without the secrets that its form gives away.

    These are users and passwords, queries and fragments of URLs, `token=...` and the like, and
    tokens of well-known services.
    """
    text = _URL.sub(r"\1\2", text)
    text = _NAMED_VALUE.sub(rf"\1={HIDDEN}", text)
    return _TOKEN.sub(HIDDEN, _BEARER.sub(rf"\1{HIDDEN}", text))


def redacted(value: object) -> object:
    """Returns the value as JSON can hold it, without passwords and the queries of URLs."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = dataclasses.fields(value)
        return redacted({field.name: getattr(value, field.name) for field in fields})
    if isinstance(value, Mapping):
        return {str(name): _redacted_item(str(name), item) for name, item in value.items()}
    if isinstance(value, enum.Enum):
        return redacted(value.value)
    if isinstance(value, str | PurePath):
        return redacted_text(str(value))
    if isinstance(value, set | frozenset):
        return sorted((redacted(item) for item in value), key=str)
    if isinstance(value, list | tuple):
        return [redacted(item) for item in value]
    if value is None or isinstance(value, bool | int | float):
        return value
    return redacted(str(value))


def _redacted_item(name: str, value: object) -> object:
    if value is not None and _SECRET_NAME.search(name):
        return HIDDEN
    return redacted(value)
