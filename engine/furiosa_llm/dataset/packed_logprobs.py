"""Log probabilities of a row's tokens, packed while they wait to be written."""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from furiosa_llm.outputs import PositionLogprobs

ENTRY_TYPE = pa.struct(
    [
        ("token_id", pa.int32()),
        ("token", pa.string()),
        ("logprob", pa.float32()),
        ("rank", pa.int32()),
    ]
)
LOGPROBS_TYPE = pa.list_(pa.list_(ENTRY_TYPE))  # by token, then by candidate

_ENTRY_BYTES = 20  # three numbers and a pointer to a text that many entries share
_NOTHING = -1


@dataclass(frozen=True, slots=True, kw_only=True)
class PackedLogprobs:
    """What is known of each token of a prompt or an answer.

    Attributes:
        counts: Entries of each token; -1 where nothing is known of it.
        token_ids: Of all entries, end to end.
        tokens: Their texts.
        logprobs: Their log probabilities.
        ranks: Their ranks.
    """

    counts: array[int]
    token_ids: array[int]
    tokens: list[str]
    logprobs: array[float]
    ranks: array[int]

    @classmethod
    def of(cls, positions: Sequence[PositionLogprobs | None] | None) -> PackedLogprobs | None:
        """Packs them, if there are any."""
        if positions is None:
            return None
        known = [position for position in positions if position is not None]
        entries = [entry for position in known for entry in position.values()]
        return cls(
            counts=array("i", [_NOTHING if one is None else len(one) for one in positions]),
            token_ids=array("i", [token_id for position in known for token_id in position]),
            tokens=[entry.decoded_token for entry in entries],
            logprobs=array("f", [entry.logprob for entry in entries]),
            ranks=array("i", [entry.rank for entry in entries]),
        )

    @property
    def num_bytes(self) -> int:
        """About how much memory it takes."""
        return 4 * len(self.counts) + _ENTRY_BYTES * len(self.token_ids)


def logprobs_column(rows: Sequence[PackedLogprobs | None]) -> pa.Array:
    """Puts all entries end to end: no Python object is made for any of them."""
    if all(row is None for row in rows):
        return pa.nulls(len(rows), LOGPROBS_TYPE)
    token_ids, logprobs, ranks = array("i"), array("f"), array("i")
    tokens: list[str] = []
    counts = array("i")
    for row in rows:
        if row is not None:
            token_ids.extend(row.token_ids)
            logprobs.extend(row.logprobs)
            ranks.extend(row.ranks)
            tokens += row.tokens
            counts.extend(row.counts)
    entries = pa.StructArray.from_arrays(
        [
            _numbers(pa.int32(), token_ids),
            pa.array(tokens, pa.string()),
            _numbers(pa.float32(), logprobs),
            _numbers(pa.int32(), ranks),
        ],
        fields=list(ENTRY_TYPE),
    )
    by_token = _lists(counts, entries)
    num_tokens = [_NOTHING if row is None else len(row.counts) for row in rows]
    return _lists(array("i", num_tokens), by_token)


def _lists(counts: array[int], values: pa.Array) -> pa.Array:
    """Cuts values into lists; a count of -1 is a null."""
    sizes = np.frombuffer(counts, np.int32)
    offsets = np.zeros(len(sizes) + 1, np.int32)
    np.cumsum(np.maximum(sizes, 0), out=offsets[1:])
    return pa.ListArray.from_arrays(
        pa.array(offsets), values, mask=pa.array(sizes == _NOTHING, pa.bool_())
    )


def _numbers(kind: pa.DataType, values: array[int] | array[float]) -> pa.Array:
    return pa.Array.from_buffers(kind, len(values), [None, pa.py_buffer(values)])
