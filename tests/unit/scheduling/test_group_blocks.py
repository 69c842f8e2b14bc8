from __future__ import annotations

import dataclasses

from hypothesis import given
from hypothesis import strategies as st

from furiosa_llm.request import Request
from furiosa_llm.sampling_params import SamplingParams
from furiosa_llm.scheduling.group_blocks import GroupBlocks
from tests.factories import make_request

NUM_ANSWERS = 3


def make_answers(group_id: str) -> list[Request]:
    return [
        dataclasses.replace(make_request(params=SamplingParams(n=NUM_ANSWERS)), group_id=group_id)
        for _ in range(NUM_ANSWERS)
    ]


@given(
    changes=st.lists(
        st.tuples(st.sampled_from("ab"), st.integers(0, 2), st.frozensets(st.integers(0, 9))),
        max_size=40,
    )
)
def test_blocks_that_answers_share_count_once(
    changes: list[tuple[str, int, frozenset[int]]],
) -> None:
    held = GroupBlocks()
    answers = {group: make_answers(group) for group in "ab"}
    for group, index, blocks in changes:
        request = answers[group][index]
        new = tuple(blocks.difference(request.block_ids))
        if not new:
            held.remove(request)
            request.block_ids = ()
            continue
        request.block_ids += new

        num_held = held.add(request, new)

        assert num_held == len({block for each in answers[group] for block in each.block_ids})


def test_the_only_answer_to_a_prompt_holds_its_own() -> None:
    request = make_request()
    request.block_ids = (4, 2)

    assert GroupBlocks().add(request, (2,)) == 2
