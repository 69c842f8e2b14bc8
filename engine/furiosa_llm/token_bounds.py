"""How few tokens a text can have, found without tokenizing it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

# Composing characters makes a text shorter: of 4 bytes one stays at the least, with some margin.
_COMPOSED_BYTES = 8
_BYTE_TOKENS = frozenset(f"<0x{byte:02X}>" for byte in range(256))
_BYTE_LETTERS = 256


def bytes_per_token(definition: str) -> int | None:
    """Returns how many bytes of a text a token stands for at most.

    Args:
        definition: The tokenizer, in the form of `tokenizer.json`.

    Returns:
        None where there is no bound: the tokenizer leaves parts of a text out, shortens them in
        ways that are not looked at here, or has one token for all that it does not know.
    """
    tokenizer = json.loads(definition)
    model = tokenizer["model"]
    if tokenizer.get("truncation") or model.get("type") != "BPE":
        return None
    added = tokenizer.get("added_tokens") or []
    if any(token["lstrip"] or token["rstrip"] or token["normalized"] for token in added):
        return None  # takes blanks along, as many as there are
    steps = _steps(tokenizer.get("pre_tokenizer"), "pretokenizers")
    normalizers = _steps(tokenizer.get("normalizer"), "normalizers")
    if not all(map(_keeps_all, steps)) or not all(map(_only_lengthens, normalizers)):
        return None
    vocabulary: Mapping[str, int] = model["vocab"]
    has_letters = any(step["type"] == "ByteLevel" for step in steps)
    if not _knows_every_byte(vocabulary, has_letters=has_letters, model=model):
        return None
    longest = max(len(token) if has_letters else len(token.encode()) for token in vocabulary)
    longest = max([longest, *(len(token["content"].encode()) for token in added)])
    composes = any(step["type"] == "NFC" for step in normalizers)
    return longest * _COMPOSED_BYTES if composes else longest


def _steps(step: Mapping[str, Any] | None, name: str) -> Sequence[Mapping[str, Any]]:
    if step is None:
        return []
    return step[name] if step["type"] == "Sequence" else [step]


def _keeps_all(step: Mapping[str, Any]) -> bool:
    """Whether a text is only cut, and its characters are replaced by no fewer bytes."""
    if step["type"] in ("Split", "Punctuation"):
        return bool(step["behavior"] != "Removed")
    return step["type"] in ("ByteLevel", "Digits", "Metaspace")


def _only_lengthens(step: Mapping[str, Any]) -> bool:
    """Whether a text does not become shorter, or by no more than composing characters makes it."""
    if step["type"] == "Replace":
        pattern = step["pattern"].get("String")
        return pattern is not None and len(step["content"].encode()) >= len(pattern.encode())
    return step["type"] in ("NFC", "Prepend")


def _knows_every_byte(
    vocabulary: Mapping[str, int], *, has_letters: bool, model: Mapping[str, Any]
) -> bool:
    """Whether nothing of a text is left out, or lost in a token for the unknown."""
    if has_letters:  # one for each byte
        return sum(len(token) == 1 for token in vocabulary) >= _BYTE_LETTERS
    return bool(model.get("byte_fallback")) and vocabulary.keys() >= _BYTE_TOKENS
