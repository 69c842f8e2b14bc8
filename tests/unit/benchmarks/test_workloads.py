from __future__ import annotations

import itertools
from pathlib import Path

import pytest

from benchmarks.workloads import (
    WORKLOADS,
    WorkloadRow,
    common_length,
    make_workload,
    read_workload,
    write_workload,
)
from furiosa_llm.dataset.columns import ColumnMapping
from furiosa_llm.dataset.reader import open_input
from furiosa_llm.dataset.record import parse_row
from furiosa_llm.sampling_params import SamplingParams


def lengths(rows: list[WorkloadRow]) -> list[tuple[int, int]]:
    return [(len(row.prompt_token_ids), row.max_tokens) for row in rows]


@pytest.mark.parametrize("name", WORKLOADS)
def test_the_same_seed_gives_the_same_rows(name: str) -> None:
    rows = list(make_workload(name, seed=1, num_rows=5))

    assert rows == list(make_workload(name, seed=1, num_rows=5))
    assert rows != list(make_workload(name, seed=2, num_rows=5))


def test_mixed_lengths_reach_from_end_to_end() -> None:
    found = lengths(list(make_workload("mixed")))

    assert len(found) == 64
    assert all(32 <= prompt <= 256 and 32 <= answer <= 128 for prompt, answer in found)
    assert max(found)[0] - min(found)[0] > 180
    assert max(answer for _, answer in found) - min(answer for _, answer in found) > 80


def test_a_shared_prefix_row_shares_512_tokens_with_the_15_others_of_its_group() -> None:
    rows = list(make_workload("shared-prefix"))
    groups = [
        [common_length(row.prompt_token_ids, other.prompt_token_ids) >= 512 for other in rows]
        for row in rows
    ]

    assert set(lengths(rows)) == {(560, 32)}
    assert [sum(group) for group in groups] == [16] * 64
    assert not all(groups[0][:16])  # they are shuffled


@pytest.mark.parametrize(
    ("name", "num_rows", "length"),
    [("long-prompts", 16, (2000, 64)), ("classification", 512, (40, 2))],
)
def test_rows_of_one_length_all_have_it(name: str, num_rows: int, length: tuple[int, int]) -> None:
    assert lengths(list(make_workload(name))) == [length] * num_rows


def test_many_rows_fit_the_vocabulary_of_the_tiny_model() -> None:
    rows = list(make_workload("many-rows"))

    assert len(rows) == 100_000
    assert {row.max_tokens for row in rows} == {1}
    assert max(itertools.chain.from_iterable(row.prompt_token_ids for row in rows)) < 256


def test_the_first_rows_are_those_of_the_whole() -> None:
    whole = list(make_workload("mixed"))

    assert list(make_workload("mixed", num_rows=3)) == whole[:3]


def test_a_written_workload_is_read_again(tmp_path: Path) -> None:
    rows = list(make_workload("mixed", num_rows=3))

    write_workload(rows, tmp_path / "mixed.jsonl")

    assert read_workload(tmp_path / "mixed.jsonl") == rows


def test_a_run_reads_a_workload_as_greedy_rows_of_a_fixed_length(tmp_path: Path) -> None:
    rows = list(make_workload("mixed", num_rows=3))
    write_workload(rows, tmp_path / "mixed.jsonl")

    records = [
        parse_row(row, ColumnMapping(), SamplingParams())
        for row in open_input(str(tmp_path / "mixed.jsonl")).rows()
    ]

    assert [list(record.prompt_token_ids or ()) for record in records] == [
        row.prompt_token_ids for row in rows
    ]
    assert [record.sampling_params.max_tokens for record in records] == [
        row.max_tokens for row in rows
    ]
    assert all(record.sampling_params.ignore_eos for record in records)
    assert all(record.sampling_params.temperature == 0 for record in records)
    assert not any(record.carried for record in records)
