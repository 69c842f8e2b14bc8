from __future__ import annotations

import pytest

from benchmarks.scheduling import PAGE, read_results, render, with_table
from benchmarks.scheduling_cases import CASES, PREFIXES, Case, Result


def test_the_page_shows_the_results_that_are_kept() -> None:
    page = PAGE.read_text("utf-8")

    assert with_table(page, render(read_results())) == page


@pytest.mark.parametrize("case", [case for case in CASES if case.name.startswith("64 in")])
def test_counts_that_are_kept_can_be_had_again(case: Case) -> None:
    kept = {(result.part, result.rows, result.measure): result for result in read_results()}

    for result in case.results():
        assert kept[result.part, result.rows, result.measure] == result


def test_each_part_gains_something_that_is_kept() -> None:
    best: dict[str, float] = {}
    for result in read_results():
        if result.ratio is not None:
            best[result.part] = min(best.get(result.part, 1.0), result.ratio)

    assert len(best) == 6
    assert max(best.values()) < 0.9


def test_a_shared_token_is_computed_once_however_small_the_cache() -> None:
    computed = {
        result.rows: result.on
        for result in read_results()
        if result.part == PREFIXES and result.measure == "computed tokens"
    }

    assert computed["64 in 4 groups, 64 blocks"] == computed["64 in 4 groups, 2,000 blocks"]


def test_a_part_that_had_nothing_to_spare_has_no_ratio() -> None:
    result = Result(part="p", rows="r", measure="preemptions", off=0, on=0)

    assert render([result]).splitlines()[-1] == "| p | r | preemptions | 0 | 0 |  |"
