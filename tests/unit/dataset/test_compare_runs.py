"""What differs between two outputs, against a comparison of Python rows."""

from __future__ import annotations

import json
import tempfile
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from furiosa_llm.dataset.compare_runs import RowDifference, compare_runs
from furiosa_llm.dataset.manifest import MANIFEST_KEY
from furiosa_llm.dataset.manifest_changes import Change, manifest_changes
from furiosa_llm.dataset.schema import ANSWER_SCHEMA
from furiosa_llm.errors import DatasetError

Row = Mapping[str, Any]


def make_row(row_index: int, **changes: Any) -> Row:
    """A row of an output, answered unless the changes say otherwise."""
    return {
        "row_index": row_index,
        "request_id": f"id-{row_index}",
        "text": "four",
        "token_ids": [4],
        "completions": None,
        "cumulative_logprob": None,
        "logprobs": None,
        "prompt_logprobs": None,
        "finish_reason": "stop",
        "stop_reason": None,
        "error_code": None,
        "error": None,
        "num_prompt_tokens": 3,
        "num_output_tokens": 1,
        "num_cached_tokens": 0,
        "queue_s": 0.5,
        "ttft_s": 1.0,
        "tpot_s": None,
        "e2e_s": 2.0,
        "peak_blocks": 1,
        "block_seconds": 2.0,
        "num_preemptions": 0,
        "num_recomputed_tokens": 0,
        "replica": 0,
    } | changes


def failed(row_index: int, code: str) -> Row:
    return make_row(
        row_index, text="", token_ids=[], finish_reason="error", error_code=code, error="bad"
    )


def write(path: Path, rows: Sequence[Row], *, group: int = 3, manifest: Any = None) -> Path:
    table = pa.Table.from_pylist(list(rows), schema=ANSWER_SCHEMA)
    if manifest is not None:
        table = table.replace_schema_metadata({MANIFEST_KEY: json.dumps(manifest)})
    pq.write_table(table, path, row_group_size=group)
    return path


def write_folder(path: Path, rows: Sequence[Row]) -> Path:
    path.mkdir()
    middle = len(rows) // 2
    write(path / "part-000000.parquet", rows[:middle])
    return write(path / "part-000001.parquet", rows[middle:]).parent


OUTCOMES = st.one_of(
    st.builds(
        lambda tokens, reason: {
            "token_ids": tokens,
            "text": "".join(map(str, tokens)),
            "finish_reason": reason,
        },
        st.lists(st.integers(0, 2), max_size=3),
        st.sampled_from(["stop", "length"]),
    ),
    st.sampled_from([{**failed(0, code)} for code in ("invalid_row", "timeout")]),
    st.builds(
        lambda tokens: {
            "completions": [{"index": 0, "text": "x", "token_ids": tokens, "finish_reason": "stop"}]
        },
        st.lists(st.integers(0, 1), max_size=1),
    ),
)


@st.composite
def outputs(draw: st.DrawFn) -> list[Row]:
    indexes = sorted(draw(st.sets(st.integers(0, 12))))
    rows: list[Row] = []
    for index in indexes:
        name = draw(st.sampled_from([f"id-{index}", "other"]))
        rows.append({**make_row(index), **draw(OUTCOMES), "row_index": index, "request_id": name})
    return rows


def kind_of(before: Row, after: Row) -> str | None:
    if before["error_code"] or after["error_code"]:
        if not before["error_code"]:
            return "failed"
        if not after["error_code"]:
            return "answered"
        return None if before["error_code"] == after["error_code"] else "error"

    def answers(row: Row) -> object:
        completions = row["completions"] or []
        return row["text"], row["token_ids"], [one["token_ids"] for one in completions]

    if answers(before) != answers(after):
        return "answer"
    return None if before["finish_reason"] == after["finish_reason"] else "ending"


def agreeing(before: Sequence[int], after: Sequence[int]) -> int:
    count = 0
    while count < min(len(before), len(after)) and before[count] == after[count]:
        count += 1
    return count


@settings(max_examples=150, deadline=None)
@given(outputs(), outputs(), st.integers(1, 5), st.booleans())
def test_it_finds_what_a_plain_comparison_finds(
    before: list[Row], after: list[Row], group: int, is_folder: bool
) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        first = write(folder / "before.parquet", before, group=group)
        second = write_folder(folder / "after", after) if is_folder else write(folder / "a", after)
        found = compare_runs(first, second, max_examples=99)

    ours = {row["row_index"]: row for row in before}
    theirs = {row["row_index"]: row for row in after}
    both = [(ours[index], theirs[index]) for index in sorted(ours.keys() & theirs.keys())]
    kinds = [kind for pair in both if (kind := kind_of(*pair))]
    answered = [pair for pair in both if not (pair[0]["error_code"] or pair[1]["error_code"])]
    assert found.num_rows == len(both)
    assert found.num_only_before == len(ours.keys() - theirs.keys())
    assert found.num_only_after == len(theirs.keys() - ours.keys())
    assert found.num_renamed == sum(a["request_id"] != b["request_id"] for a, b in both)
    assert found.kinds == Counter(kinds)
    assert [row.kind for row in found.examples] == kinds
    assert found.num_different == len(kinds) + len(ours.keys() ^ theirs.keys())
    assert found.num_tokens == sum(len(a["token_ids"]) for a, _ in answered)
    assert found.num_tokens_agreeing == sum(
        agreeing(a["token_ids"], b["token_ids"]) for a, b in answered
    )


def test_an_example_names_the_row_and_the_first_token_that_differs(tmp_path: Path) -> None:
    before = [make_row(0), make_row(1, text="a b", token_ids=[1, 2]), failed(2, "timeout")]
    after = [make_row(0), make_row(1, text="a c", token_ids=[1, 3]), make_row(2)]

    found = compare_runs(
        write(tmp_path / "a", before), write(tmp_path / "b", after), max_examples=2
    )

    assert found.examples == [
        RowDifference(
            row_index=1,
            request_id="id-1",
            kind="answer",
            first_token=1,
            before="a b",
            after="a c",
        ),
        RowDifference(
            row_index=2,
            request_id="id-2",
            kind="answered",
            first_token=None,
            before="timeout: bad",
            after="four",
        ),
    ]


def test_costs_are_those_of_rows_that_both_answered(tmp_path: Path) -> None:
    before = [make_row(0, e2e_s=2.0), make_row(1, e2e_s=4.0), failed(2, "timeout")]
    after = [make_row(0, e2e_s=1.0), make_row(1, e2e_s=2.0), make_row(2, e2e_s=900.0)]

    found = compare_runs(write(tmp_path / "a", before), write(tmp_path / "b", after))

    assert found.means["e2e_s"] == (3.0, 1.5)
    assert found.means["tpot_s"] == (None, None)
    assert found.totals["num_prompt_tokens"] == (6, 6)
    assert found.num_different == 1


def test_times_make_no_row_different(tmp_path: Path) -> None:
    before = write(tmp_path / "a", [make_row(0)])
    after = write(tmp_path / "b", [make_row(0, e2e_s=9.0, block_seconds=7.0, replica=1)])

    assert compare_runs(before, after).num_different == 0


def test_no_rows_at_all_are_the_same(tmp_path: Path) -> None:
    empty = write(tmp_path / "a", [])

    found = compare_runs(empty, empty)

    assert (found.num_rows, found.num_different) == (0, 0)


def test_what_the_runs_were_is_compared() -> None:
    before = {"identity": {"seed": 0, "n": 1}, "versions": {"torch": "2.12"}, "host": "a"}
    after = {
        "identity": {"seed": 1, "n": 1},
        "options": {"max_num_seqs": 8, "output": "x"},
        "versions": {"torch": "2.13"},
        "host": "a",
    }

    assert manifest_changes(before, after) == (
        Change("seed", 0, 1),
        Change("version of torch", "2.12", "2.13"),
        Change("max_num_seqs", None, 8),
    )
    assert manifest_changes(before, before) == ()


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        ([make_row(1), make_row(0)], "out of order or there twice"),
        ([make_row(1), make_row(1)], "out of order or there twice"),
    ],
)
def test_rows_out_of_order_are_refused(tmp_path: Path, rows: Sequence[Row], expected: str) -> None:
    good = write(tmp_path / "a", [make_row(0), make_row(1)])
    bad = write(tmp_path / "b", rows, group=1)

    with pytest.raises(DatasetError, match=expected):
        compare_runs(good, bad)


def test_an_output_that_lost_rows_is_refused(tmp_path: Path) -> None:
    part = write(tmp_path / "a", [make_row(0)], manifest={"counts": {"num_rows": 3}})

    with pytest.raises(DatasetError, match="holds 1 of the 3 rows"):
        compare_runs(part, part)


def test_a_file_that_is_no_output_is_refused(tmp_path: Path) -> None:
    other = tmp_path / "other.parquet"
    pq.write_table(pa.table({"row_index": [0], "text": ["x"]}), other)
    wrong = tmp_path / "wrong.parquet"
    pq.write_table(pa.Table.from_pylist([{**make_row(0), "row_index": "one"}]), wrong)

    with pytest.raises(DatasetError, match="has no column request_id; name the output"):
        compare_runs(other, other)
    with pytest.raises(DatasetError, match="cannot be read as the output of a run"):
        compare_runs(wrong, wrong)
    with pytest.raises(DatasetError, match="does not exist; name the output of a run"):
        compare_runs(tmp_path / "absent", other)
