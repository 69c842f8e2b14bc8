"""Checks the three forms of a prompt: text, chat messages and token ids."""

from __future__ import annotations

from array import array
from typing import TypeAlias

from furiosa_llm.dataset.json_text import to_json
from furiosa_llm.errors import InvalidRowError

Message: TypeAlias = dict[str, object]
Prompt: TypeAlias = "str | list[Message] | array[int]"

_MAX_TOKEN_ID = 2**31 - 1
_MAX_SHOWN = 80


def shortened(value: object) -> str:
    """Shows a value in a message, cut to a readable length, with its type."""
    try:
        text = repr(value)
    except (ValueError, OverflowError):  # a value of Arrow that Python's types cannot hold
        text = to_json(value)
    if len(text) > _MAX_SHOWN:
        text = text[: _MAX_SHOWN - 3] + "..."
    return f"{text} ({type(value).__name__})"


def text_prompt(value: object, column: str) -> str:
    """Returns the prompt's text.

    Raises:
        InvalidRowError: It is empty or no text.
    """
    if not isinstance(value, str):
        raise InvalidRowError(f"{column} must be text, got {shortened(value)}")
    if not value:
        raise InvalidRowError(f"{column} is empty; a prompt needs at least one character")
    return value


def token_ids(value: object, column: str) -> array[int]:
    """Returns the prompt's tokens, 4 bytes each.

    Raises:
        InvalidRowError: It is empty or not a list of token ids.
    """
    if not isinstance(value, list):
        raise InvalidRowError(f"{column} must be a list of token ids, got {shortened(value)}")
    if not value:
        raise InvalidRowError(f"{column} is empty; a prompt needs at least one token")
    if set(map(type, value)) == {int} and min(value) >= 0 and max(value) <= _MAX_TOKEN_ID:
        return array("i", value)
    wrong = next(
        token for token in value if type(token) is not int or not 0 <= token <= _MAX_TOKEN_ID
    )
    raise InvalidRowError(
        f"{column} must hold whole numbers from 0 to {_MAX_TOKEN_ID}, got {shortened(wrong)}"
    )


def chat_messages(value: object, column: str) -> list[Message]:
    """Returns the chat with each content as one text.

    Raises:
        InvalidRowError: It is empty or not a list of messages.
    """
    if not isinstance(value, list):
        raise InvalidRowError(f"{column} must be a list of messages, got {shortened(value)}")
    if not value:
        raise InvalidRowError(f"{column} is empty; a chat needs at least one message")
    return [_message(item, f"{column}[{index}]") for index, item in enumerate(value)]


def any_prompt(value: object, column: str) -> Prompt:
    """Returns the prompt of a column that may hold text, messages or token ids.

    Raises:
        InvalidRowError: It is none of them, or empty.
    """
    if isinstance(value, list):
        if value and isinstance(value[0], dict):
            return chat_messages(value, column)
        return token_ids(value, column)
    return text_prompt(value, column)


def _message(value: object, place: str) -> Message:
    if not isinstance(value, dict):
        raise InvalidRowError(f"{place} must be an object, got {shortened(value)}")
    role = value.get("role")
    if not isinstance(role, str) or not role:
        raise InvalidRowError(f"{place}.role must be text, got {shortened(role)}")
    # Parquet gives every message every key; templates ask whether a key is there.
    message: Message = {key: item for key, item in value.items() if item is not None}
    message["content"] = _content(value.get("content"), role, place)
    return message


def _content(value: object, role: str, place: str) -> str | None:
    if isinstance(value, str):
        return value
    if value is None and role == "assistant":
        return None
    if isinstance(value, list):
        return "".join(_part(part, f"{place}.content[{i}]") for i, part in enumerate(value))
    raise InvalidRowError(
        f"{place}.content must be text or a list of text parts, got {shortened(value)}"
    )


def _part(value: object, place: str) -> str:
    if not isinstance(value, dict):
        raise InvalidRowError(f"{place} must be an object, got {shortened(value)}")
    kind, text = value.get("type"), value.get("text")
    if kind != "text":
        raise InvalidRowError(f"{place}.type must be 'text', got {shortened(kind)}")
    if not isinstance(text, str):
        raise InvalidRowError(f"{place}.text must be text, got {shortened(text)}")
    return text
