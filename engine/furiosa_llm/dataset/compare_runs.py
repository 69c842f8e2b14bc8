"""Compares the outputs of two runs, row by row, holding only a little of each at a time."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from furiosa_llm.dataset.equal_columns import (
    Flags,
    equal_completions,
    equal_lists,
    equal_values,
)
from furiosa_llm.dataset.manifest_changes import Change, manifest_changes
from furiosa_llm.dataset.row_pairs import RowPairs
from furiosa_llm.dataset.run_output import open_run_output

# What may have become of a row. Both runs answered it, but for the next three.
ANSWER, ENDING = "answer", "ending"
FAILED, ANSWERED, ERROR = "failed", "answered", "error"

_Pair = tuple[pa.Table, pa.Table]

SUMMED = ("num_prompt_tokens", "num_output_tokens", "num_cached_tokens", "num_preemptions")
AVERAGED = ("queue_s", "ttft_s", "tpot_s", "e2e_s", "peak_blocks", "block_seconds")
_COMPARED = ("text", "token_ids", "completions", "finish_reason", "error_code", "error")
_COLUMNS = ("row_index", "request_id", *_COMPARED, *SUMMED, *AVERAGED)


@dataclass(frozen=True, slots=True, kw_only=True)
class RowDifference:
    """A row that came out differently.

    Attributes:
        row_index: Its place in the input.
        request_id: What the second run calls it.
        kind: `answer`; `ending` where only `finish_reason` differs; `failed` and `answered` where
            only the first or only the second run answered it; `error` where it failed otherwise.
        first_token: Place of the first token of an `answer` that differs, or where one ends; None
            where no token of the first one does.
        before: The first run's answer, or its error.
        after: The second run's.
    """

    row_index: int
    request_id: str
    kind: str
    first_token: int | None
    before: str
    after: str


@dataclass(slots=True, kw_only=True)
class Comparison:
    """What two runs have in common, and what not.

    Attributes:
        changes: What differs between what the runs were.
        num_rows: Rows that both have.
        num_only_before: Rows that only the first run has.
        num_only_after: Rows that only the second run has.
        num_renamed: Rows in both that have another `request_id`.
        kinds: Of rows in both that came out differently, how many in which way.
        num_tokens: Tokens of the first run's answers where both answered.
        num_tokens_agreeing: Those of them up to the first that differs.
        examples: The first rows that came out differently.
        totals: Of columns in `SUMMED`, sums over the rows that both answered, before and after.
        means: Of columns in `AVERAGED`, means over them; None where there is no number.
    """

    changes: tuple[Change, ...] = ()
    num_rows: int = 0
    num_only_before: int = 0
    num_only_after: int = 0
    num_renamed: int = 0
    kinds: Counter[str] = field(default_factory=Counter)
    num_tokens: int = 0
    num_tokens_agreeing: int = 0
    examples: list[RowDifference] = field(default_factory=list)
    totals: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    means: Mapping[str, tuple[float | None, float | None]] = field(default_factory=dict)

    @property
    def num_different(self) -> int:
        """Rows that came out differently, or are in one output only."""
        return self.kinds.total() + self.num_only_before + self.num_only_after


def compare_runs(before: Path, after: Path, *, max_examples: int = 0) -> Comparison:
    """Compares two outputs of the same rows; those with the same `row_index` are a pair.

    Times and KV-cache use do not make a row different.

    Args:
        before: A file or a folder that `run` or `merge` wrote.
        after: Another one.
        max_examples: How many rows that differ are kept, the first ones.

    Raises:
        DatasetError: One cannot be read, or is no output.
    """
    outputs = open_run_output(before), open_run_output(after)
    result = Comparison(changes=manifest_changes(outputs[0].manifest, outputs[1].manifest))
    pairs = RowPairs(*(output.tables(_COLUMNS) for output in outputs))
    sums: Counter[tuple[str, int]] = Counter()
    counts: Counter[tuple[str, int]] = Counter()
    for pair in pairs:
        _compare(pair, result, max_examples)
        _add_costs(pair, sums, counts)
    result.num_only_before, result.num_only_after = pairs.num_alone
    result.totals = {name: (sums[name, 0], sums[name, 1]) for name in SUMMED}
    result.means = {
        name: (_mean(sums[name, 0], counts[name, 0]), _mean(sums[name, 1], counts[name, 1]))
        for name in AVERAGED
    }
    return result


def _compare(pair: _Pair, result: Comparison, max_examples: int) -> None:
    """Adds rows that are pairs to a comparison."""
    result.num_rows += len(pair[0])
    result.num_renamed += int((~equal_values(*_columns(pair, "request_id"))).sum())
    num_tokens = _num_tokens_of_answered(pair)
    result.num_tokens += num_tokens
    result.num_tokens_agreeing += num_tokens
    kinds = _kinds(pair)
    for row in _rows(pair, np.flatnonzero(kinds != "")):
        kind = str(kinds[row.place])
        result.kinds[kind] += 1
        first_token = _first_difference(*row.token_ids) if kind == ANSWER else None
        if first_token is not None:
            result.num_tokens_agreeing -= len(row.token_ids[0]) - first_token
        if len(result.examples) < max_examples:
            result.examples.append(
                RowDifference(
                    row_index=row.row_index,
                    request_id=row.request_id,
                    kind=kind,
                    first_token=first_token,
                    before=row.results[0],
                    after=row.results[1],
                )
            )


def _kinds(pair: _Pair) -> npt.NDArray[np.str_]:
    """Tells of each row in which way it came out differently; an empty text for none."""
    failed, fails = _failed(pair)
    is_same = (
        equal_values(*_columns(pair, "text"))
        & equal_lists(*_columns(pair, "token_ids"))
        & equal_completions(*_columns(pair, "completions"))
    )
    has_same_error = equal_values(*_columns(pair, "error_code"))
    ends_the_same = equal_values(*_columns(pair, "finish_reason"))
    return np.select(
        [
            failed & fails & ~has_same_error,
            failed & ~fails,
            ~failed & fails,
            ~failed & ~fails & ~is_same,
            ~failed & ~fails & ~ends_the_same,
        ],
        [ERROR, ANSWERED, FAILED, ANSWER, ENDING],
        default="",
    )


def _failed(pair: _Pair) -> tuple[Flags, Flags]:
    before, after = _columns(pair, "error_code")
    return before.is_valid().to_numpy(), after.is_valid().to_numpy()


def _num_tokens_of_answered(pair: _Pair) -> int:
    failed, fails = _failed(pair)
    lengths = pc.list_value_length(pair[0].column("token_ids")).to_numpy()
    return int(lengths[~failed & ~fails].sum())


def _columns(pair: _Pair, name: str) -> tuple[pa.ChunkedArray, pa.ChunkedArray]:
    return pair[0].column(name), pair[1].column(name)


@dataclass(frozen=True, slots=True)
class _Row:
    """A row of both outputs, at a place in their tables."""

    place: int
    row_index: int
    request_id: str
    token_ids: tuple[Sequence[int], Sequence[int]]
    results: tuple[str, str]  # the answer, or the error


def _rows(pair: _Pair, places: npt.NDArray[np.intp]) -> Iterator[_Row]:
    columns = ["row_index", "request_id", "token_ids", "text", "error_code", "error"]
    before, after = (table.select(columns).take(pa.array(places)).to_pylist() for table in pair)
    for place, ours, theirs in zip(places.tolist(), before, after, strict=True):
        yield _Row(
            place,
            theirs["row_index"],
            theirs["request_id"],
            (ours["token_ids"], theirs["token_ids"]),
            (_result(ours), _result(theirs)),
        )


def _result(row: Mapping[str, Any]) -> str:
    return str(row["text"]) if row["error_code"] is None else f"{row['error_code']}: {row['error']}"


def _first_difference(before: Sequence[int], after: Sequence[int]) -> int | None:
    for place, (ours, theirs) in enumerate(zip(before, after, strict=False)):
        if ours != theirs:
            return place
    return None if len(before) == len(after) else min(len(before), len(after))


def _add_costs(
    pair: _Pair,
    sums: Counter[tuple[str, int]],
    counts: Counter[tuple[str, int]],
) -> None:
    """Adds up what the rows cost that both answered."""
    failed, fails = _failed(pair)
    answered = pa.array(~failed & ~fails)
    for which, table in enumerate(pair):
        for name in (*SUMMED, *AVERAGED):
            column = table.column(name).filter(answered)
            sums[name, which] += pc.sum(column).as_py() or 0
            counts[name, which] += len(column) - column.null_count


def _mean(total: float, number: int) -> float | None:
    return total / number if number else None
