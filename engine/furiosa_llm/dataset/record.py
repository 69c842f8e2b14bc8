"""What an input row becomes: a prompt, its parameters, and the columns that it carries along."""

from __future__ import annotations

import sys
from array import array
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from furiosa_llm.dataset.batch_line import (
    ENVELOPE_COLUMNS,
    batch_params,
    batch_prompt,
    is_batch_line,
)
from furiosa_llm.dataset.columns import PROMPT_COLUMNS, ColumnMapping
from furiosa_llm.dataset.prompts import (
    Message,
    Prompt,
    any_prompt,
    chat_messages,
    shortened,
    text_prompt,
    token_ids,
)
from furiosa_llm.errors import InvalidParamsError, InvalidRowError
from furiosa_llm.sampling_params import PARAMETER_NAMES, SamplingParams

_ID_COLUMNS = ("id", "custom_id")
_MAX_SHOWN_COLUMNS = 10
_EXACT = 2**53  # up to here a float has every whole number
_NOTHING: Mapping[str, object] = {}


@dataclass(frozen=True, slots=True)
class RawRow:
    """One input row before it is understood.

    Attributes:
        row_index: Position in the input, from 0.
        data: Its columns; None when it could not be read as an object.
        error: Why it could not, with file and line.
        num_bytes: About how much memory its columns take.
    """

    row_index: int
    data: dict[str, object] | None
    error: str | None = None
    num_bytes: int = 0


@dataclass(frozen=True, slots=True)
class PromptRecord:
    """A row that holds a prompt: exactly one of text, messages and token ids.

    Attributes:
        row_index: Position in the input, from 0.
        request_id: The row's own id, else its index.
        prompt: The text.
        messages: The chat.
        prompt_token_ids: The tokens.
        sampling_params: The run's own object unless the row overrides something.
        carried: The input's other columns.
    """

    row_index: int
    request_id: str
    prompt: str | None
    messages: list[Message] | None
    prompt_token_ids: Sequence[int] | None
    sampling_params: SamplingParams
    carried: Mapping[str, object]


def parse_row(row: RawRow, columns: ColumnMapping, defaults: SamplingParams) -> PromptRecord:
    """Understands one row.

    Raises:
        InvalidRowError: It holds no prompt, more than one, or a damaged one.
        InvalidParamsError: Its sampling parameters make no sense.
    """
    data = row.data
    if data is None:
        raise InvalidRowError(row.error or "the row could not be read")
    is_batch = not columns.maps_prompt and is_batch_line(data)
    prompt = _batch_prompt(data) if is_batch else _prompt_of(data, columns)
    changes = _params_of(data, columns.params_name)
    if is_batch:
        changes.update(batch_params(data))
    id_column = _id_column(data, is_batch=is_batch)
    if id_column is not None and not _is_id(data[id_column]):
        raise InvalidRowError(
            f"{id_column} must be text or a whole number, got {shortened(data[id_column])}"
        )
    return PromptRecord(
        row.row_index,
        str(row.row_index) if id_column is None else _id_text(data[id_column]),
        prompt if isinstance(prompt, str) else None,
        prompt if isinstance(prompt, list) else None,
        prompt if isinstance(prompt, array) else None,
        defaults.updated(changes) if changes else defaults,
        _carried_of(data, columns, id_column, is_batch=is_batch),
    )


def identify(row: RawRow, columns: ColumnMapping) -> tuple[str, Mapping[str, object]]:
    """Returns the request id and the carried columns of any row, also of one that is refused."""
    data = row.data
    if data is None:
        return str(row.row_index), _NOTHING
    is_batch = not columns.maps_prompt and is_batch_line(data)
    id_column = _id_column(data, is_batch=is_batch)
    carried = _carried_of(data, columns, id_column, is_batch=is_batch)
    if id_column is None or not _is_id(data[id_column]):
        return str(row.row_index), carried
    return _id_text(data[id_column]), carried


def _prompt_of(data: Mapping[str, object], columns: ColumnMapping) -> Prompt:
    if columns.template is not None:
        return text_prompt(columns.render(data), "the prompt that the template makes")
    if columns.prompt_column is not None:
        value = data.get(columns.prompt_column)
        if value is None:
            raise _no_prompt(data, (columns.prompt_column,))
        return any_prompt(value, columns.prompt_column)
    text, messages, tokens = map(data.get, PROMPT_COLUMNS)
    if (text is not None) + (messages is not None) + (tokens is not None) > 1:
        given = [name for name in PROMPT_COLUMNS if data.get(name) is not None]
        raise InvalidRowError(f"the row has {_listed(given)}; a row may have only one of them")
    if text is not None:
        return text_prompt(text, "prompt")
    if messages is not None:
        return chat_messages(messages, "messages")
    if tokens is not None:
        return token_ids(tokens, "prompt_token_ids")
    raise _no_prompt(data, PROMPT_COLUMNS)


def _batch_prompt(data: Mapping[str, object]) -> Prompt:
    given = [name for name in PROMPT_COLUMNS if data.get(name) is not None]
    if given:
        raise InvalidRowError(f"the row has {_listed(given)} next to 'body'; only one may be there")
    return batch_prompt(data)


def _no_prompt(data: Mapping[str, object], wanted: Sequence[str]) -> InvalidRowError:
    nulls = [name for name in wanted if name in data]
    if nulls:
        verb = "is" if len(nulls) == 1 else "are"
        return InvalidRowError(f"the row has no prompt: {_listed(nulls)} {verb} null")
    return InvalidRowError(
        f"the row has no prompt: looked for {_listed(wanted)}, but its columns are "
        f"{_listed(list(data))}; name the prompt's column with --prompt-column or --template"
    )


def _listed(names: Sequence[str]) -> str:
    shown = ", ".join(repr(name[:40]) for name in names[:_MAX_SHOWN_COLUMNS])
    more = len(names) - _MAX_SHOWN_COLUMNS
    return (f"{shown} and {more} more" if more > 0 else shown) or "none"


def _params_of(data: Mapping[str, object], params_name: str) -> dict[str, object]:
    """The row's own parameters; null is what Parquet has where a row gives none."""
    changes: dict[str, object] = {}
    if not PARAMETER_NAMES.isdisjoint(data):
        changes = {
            name: data[name] for name in PARAMETER_NAMES & data.keys() if data[name] is not None
        }
    own = data.get(params_name)
    if own is not None:
        if not isinstance(own, dict):
            raise InvalidParamsError(f"{params_name} must be an object, got {shortened(own)}")
        changes.update((name, value) for name, value in own.items() if value is not None)
    return changes


def _id_column(data: Mapping[str, object], *, is_batch: bool) -> str | None:
    """The column that names the request: of two the usual one of the format."""
    for name in reversed(_ID_COLUMNS) if is_batch else _ID_COLUMNS:
        if data.get(name) is not None:
            return name
    return None


def _is_id(value: object) -> bool:
    if isinstance(value, float):  # what whole numbers become in a table with nulls
        return value.is_integer() and abs(value) <= _EXACT
    return isinstance(value, str | int) and not isinstance(value, bool)


def _id_text(value: object) -> str:
    return str(int(value) if isinstance(value, float) else value)


def _carried_of(
    data: Mapping[str, object], columns: ColumnMapping, id_column: str | None, *, is_batch: bool
) -> Mapping[str, object]:
    """The columns that go through to the output, an id that is not used among them."""
    if id_column is not None and not _is_id(data[id_column]):
        id_column = None
    consumed = columns.consumed
    carried: dict[str, object] | None = None
    for name, value in data.items():
        if name in consumed or name == id_column:
            continue
        if value is None and name in _ID_COLUMNS:
            continue
        if is_batch and name in ENVELOPE_COLUMNS:
            continue
        if carried is None:
            carried = {}
        # A million rows have the same few names: keep each once.
        carried[sys.intern(name)] = value
    return _NOTHING if carried is None else carried
