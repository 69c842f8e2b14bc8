"""What form an answer must have: a JSON schema, a pattern, one of some texts, a grammar."""

from __future__ import annotations

import dataclasses
import json as json_text
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from furiosa_llm.errors import InvalidParamsError
from furiosa_llm.param_checks import is_text, require, shortened, tuple_of
from furiosa_llm.row_limits import MAX_CHOICES, MAX_FORM_CHARACTERS


@dataclass(frozen=True, slots=True, kw_only=True)
class StructuredOutputs:
    """What form an answer must have. Exactly one is given.

    Attributes:
        json: A JSON schema, as an object or as its text; kept as text.
        json_object: Whether any JSON object will do.
        regex: A regular expression that the whole answer matches.
        choice: Texts one of which is the answer.
        grammar: A grammar in Lark's notation; its rule `start` is the whole answer.

    Raises:
        InvalidParamsError: None is given, or more than one, or one of the wrong type.
    """

    json: Mapping[str, object] | str | None = None
    json_object: bool = False
    regex: str | None = None
    choice: tuple[str, ...] | None = None
    grammar: str | None = None

    def __post_init__(self) -> None:
        if isinstance(self.json, Mapping):
            object.__setattr__(self, "json", _schema_text(self.json))
        if self.choice is not None:
            object.__setattr__(self, "choice", tuple_of(_named("choice"), self.choice))
        given = [name for name in FORMS if getattr(self, name) not in (None, False)]
        if len(given) != 1:
            raise InvalidParamsError(
                f"structured_outputs must have exactly one of {', '.join(FORMS)}, got "
                + (", ".join(given) or "none of them")
            )
        self._check_types()

    def _check_types(self) -> None:
        for name in ("json", "regex", "grammar"):
            value = getattr(self, name)
            wanted = "a text that is not empty" + (" or an object" if name == "json" else "")
            require(value is None or is_text(value), _named(name), value, wanted)
        require(
            isinstance(self.json_object, bool),
            _named("json_object"),
            self.json_object,
            "true or false",
        )
        if self.choice is not None:
            require(
                0 < len(self.choice) <= MAX_CHOICES and all(map(is_text, self.choice)),
                _named("choice"),
                self.choice,
                f"a list of at most {MAX_CHOICES} texts, none of them empty",
            )
        self._check_length()

    def _check_length(self) -> None:
        for name in ("json", "regex", "grammar", "choice"):
            value = getattr(self, name) or ""
            length = len(value) if isinstance(value, str) else sum(map(len, value))
            wanted = f"of at most {MAX_FORM_CHARACTERS:,} characters"
            require(length <= MAX_FORM_CHARACTERS, _named(name), value, wanted)


FORMS = tuple(field.name for field in dataclasses.fields(StructuredOutputs))


def checked_structure(value: object) -> StructuredOutputs | None:
    """Reads the form of an answer from an object such as `{"regex": "[0-9]+"}`.

    Raises:
        InvalidParamsError: It is no object, or does not say one form.
    """
    if value is None or isinstance(value, StructuredOutputs):
        return value
    if not isinstance(value, Mapping):
        raise InvalidParamsError(
            f"structured_outputs must be an object with one of {', '.join(FORMS)}, got "
            f"{shortened(value)}"
        )
    given = {name: item for name, item in value.items() if item is not None}
    unknown = [name for name in given if name not in FORMS]
    if unknown:
        raise InvalidParamsError(
            f"structured_outputs has {shortened(unknown[0])}; known are {', '.join(FORMS)}"
        )
    return StructuredOutputs(**given)


def parse_structure(text: str) -> StructuredOutputs | None:
    """Reads the form of an answer from JSON, or from the file of `@FILE`.

    Raises:
        ValueError: The file cannot be read, or the text is no JSON or says no form.
    """
    if text.startswith("@"):
        try:
            text = Path(text[1:]).read_text(encoding="utf-8")
        except OSError as error:
            raise ValueError(f"{text[1:]}: cannot be read: {error.strerror}") from error
    try:
        value = json_text.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{shortened(text)} is not JSON: {error}") from error
    return checked_structure(value)


def _schema_text(schema: Mapping[str, object]) -> str:
    """The order of the keys stays: it is that of the answer's properties."""
    try:
        return json_text.dumps(dict(schema), ensure_ascii=False, allow_nan=False)
    except (TypeError, ValueError, RecursionError) as error:
        raise InvalidParamsError(f"structured_outputs.json cannot be JSON: {error}") from error


def _named(form: str) -> str:
    return f"structured_outputs.{form}"
