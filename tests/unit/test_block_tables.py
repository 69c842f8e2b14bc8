from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from furiosa_llm.execution.block_tables import BlockTables
from furiosa_llm.scheduler_output import ScheduledRequest

# Tables that share no memory, as those of a request that got its blocks at another time.
ROWS = st.lists(st.integers(1, 9), min_size=1, max_size=4).map(tuple)


def make_share(block_ids: tuple[int, ...]) -> ScheduledRequest:
    return ScheduledRequest(
        request_id=0, token_ids=(1,), start_position=0, block_ids=block_ids, sampling=None
    )


@given(
    rows=st.lists(ROWS, min_size=4, max_size=4),
    steps=st.lists(st.lists(st.integers(0, 3), min_size=1, max_size=4), min_size=1, max_size=6),
    num_columns=st.sampled_from([None, 4, 6]),
)
def test_tables_are_those_of_the_step_whatever_was_before(
    rows: list[tuple[int, ...]], steps: list[list[int]], num_columns: int | None
) -> None:
    tables = BlockTables()
    for step in steps:
        lists = [rows[index] for index in step]

        table = tables.of([make_share(row) for row in lists], num_columns=num_columns)

        width = num_columns or max(map(len, lists))
        padded = [[*row, *[0] * (width - len(row))] for row in lists]
        assert np.array_equal(table, np.array(padded, np.int32))
        assert table.dtype == np.int32


def test_a_request_that_gets_another_block_has_it_in_its_table() -> None:
    tables = BlockTables()
    tables.of([make_share((5,)), make_share((6, 7))])

    assert tables.of([make_share((5, 8)), make_share((6, 7))]).tolist() == [[5, 8], [6, 7]]
