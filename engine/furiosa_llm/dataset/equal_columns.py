"""Tells in which rows two columns of an output hold the same."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

Flags = npt.NDArray[np.bool_]


def equal_values(before: pa.ChunkedArray, after: pa.ChunkedArray) -> Flags:
    """Tells of each row whether both hold the same text or number, or none."""
    equal = pc.fill_null(pc.equal(before, after), False).to_numpy()
    return np.asarray(equal | (before.is_null().to_numpy() & after.is_null().to_numpy()))


def equal_lists(before: pa.ChunkedArray, after: pa.ChunkedArray) -> Flags:
    """Tells of each row whether both hold the same numbers; no row lacks its list."""
    lengths = pc.list_value_length(before).to_numpy()
    equal = np.asarray(lengths == pc.list_value_length(after).to_numpy())
    places = np.flatnonzero(equal)
    ours, theirs = (
        pc.list_flatten(column.take(pa.array(places))).to_numpy() for column in (before, after)
    )
    equal[np.repeat(places, lengths[places])[ours != theirs]] = False
    return equal


def equal_completions(before: pa.ChunkedArray, after: pa.ChunkedArray) -> Flags:
    """Tells of each row whether all answers of `n` > 1 are the same, log probabilities aside."""
    equal = np.ones(len(before), np.bool_)
    has_any = before.is_valid().to_numpy() | after.is_valid().to_numpy()
    for place in np.flatnonzero(has_any).tolist():
        equal[place] = _answers(before[place].as_py()) == _answers(after[place].as_py())
    return equal


def _answers(completions: Sequence[Mapping[str, object]] | None) -> list[object]:
    return [(one["token_ids"], one["text"], one["finish_reason"]) for one in completions or ()]
