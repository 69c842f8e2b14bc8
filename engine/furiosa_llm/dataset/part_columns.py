"""The columns of a part.

They are those of the output; of the input's own columns those whose type the input declares, as
`carried.NAME`, and all others as one JSON object in `carried`: their types are only known when all
rows are.
"""

from __future__ import annotations

from array import array
from collections.abc import Mapping, Sequence
from itertools import accumulate
from operator import attrgetter
from typing import TypeAlias

import pyarrow as pa

from furiosa_llm.dataset.answer import AnswerRow
from furiosa_llm.dataset.json_text import to_json
from furiosa_llm.dataset.packed_logprobs import LOGPROBS_TYPE, logprobs_column
from furiosa_llm.dataset.schema import ANSWER_SCHEMA, COMPLETION_TYPE
from furiosa_llm.outputs import CompletionOutput, PositionLogprobs

CARRIED_JSON = "carried"

Carried: TypeAlias = Mapping[str, object]
DeclaredTypes: TypeAlias = Mapping[str, pa.DataType]


def typed_column(name: str) -> str:
    """Names the column of a part that holds a carried column of declared type."""
    return f"{CARRIED_JSON}.{name}"


def part_schema(declared: DeclaredTypes) -> pa.Schema:
    """Returns the columns that every part of a run has."""
    fields = list(ANSWER_SCHEMA)
    fields += [pa.field(typed_column(name), kind) for name, kind in declared.items()]
    return pa.schema([*fields, pa.field(CARRIED_JSON, pa.string())])


def answer_arrays(rows: Sequence[AnswerRow]) -> list[pa.Array]:
    """Builds the columns of `ANSWER_SCHEMA`."""
    return [_answer_column(rows, field) for field in ANSWER_SCHEMA]


def carried_arrays(carried: Sequence[Carried], declared: DeclaredTypes) -> list[pa.Array]:
    """Builds the columns of what each row carries."""
    arrays = [
        pa.array([values.get(name) for values in carried], type=kind)
        for name, kind in declared.items()
    ]
    texts = [_carried_json(values, declared) for values in carried]
    return [*arrays, pa.array(texts, type=pa.string())]


def _answer_column(rows: Sequence[AnswerRow], field: pa.Field) -> pa.Array:
    if field.name == "token_ids":
        return _token_lists([row.token_ids for row in rows])
    if field.type == LOGPROBS_TYPE:
        return logprobs_column(list(map(attrgetter(field.name), rows)))
    if field.name == "completions":
        values = [_completions(row.completions) for row in rows]
        return pa.array(values, type=pa.list_(COMPLETION_TYPE))
    return pa.array(list(map(attrgetter(field.name), rows)), type=field.type)


def _token_lists(lists: Sequence[array[int]]) -> pa.Array:
    """Puts all tokens end to end: no Python number is made for any of them."""
    tokens = array("i")
    for one in lists:
        tokens.extend(one)
    offsets = array("i", accumulate(map(len, lists), initial=0))
    return pa.ListArray.from_arrays(_int32(offsets), _int32(tokens))


def _int32(values: array[int]) -> pa.Array:
    return pa.Array.from_buffers(pa.int32(), len(values), [None, pa.py_buffer(values)])


def _completions(completions: Sequence[CompletionOutput] | None) -> list[dict[str, object]] | None:
    if completions is None:
        return None
    return [
        {
            "index": one.index,
            "text": one.text,
            "token_ids": one.token_ids,
            "finish_reason": one.finish_reason,
            "stop_reason": None if one.stop_reason is None else str(one.stop_reason),
            "cumulative_logprob": one.cumulative_logprob,
            "logprobs": _logprobs(one.logprobs),
        }
        for one in completions
    ]


def _logprobs(positions: Sequence[PositionLogprobs] | None) -> list[list[object]] | None:
    if positions is None:
        return None
    return [
        [
            {
                "token_id": token_id,
                "token": entry.decoded_token,
                "logprob": entry.logprob,
                "rank": entry.rank,
            }
            for token_id, entry in position.items()
        ]
        for position in positions
    ]


def _carried_json(carried: Carried, declared: DeclaredTypes) -> str | None:
    if not declared:
        return to_json(carried) if carried else None
    other = {name: value for name, value in carried.items() if name not in declared}
    return to_json(other) if other else None
