from __future__ import annotations

from furiosa_llm.backlog import Backlog
from furiosa_llm.engine_core import EngineCore
from furiosa_llm.outputs import RequestOutput
from furiosa_llm.request import TokenizedPrompt
from furiosa_llm.sampling_params import RequestOutputKind, SamplingParams
from tests.unit.test_engine_core import make_core, says

PARAMS = SamplingParams(temperature=0, max_tokens=3, output_kind=RequestOutputKind.FINAL)
NAMES = [f"row {number}" for number in range(7)]


def make_backlog(max_held: int) -> tuple[Backlog, EngineCore]:
    core = make_core(says([3, 4, 5]), max_processing_samples=max_held)
    backlog = Backlog(core)
    for name in NAMES:
        backlog.add(
            TokenizedPrompt(
                request_id=name,
                text=None,
                prompt_token_ids=[100, 101],
                sampling_params=PARAMS,
                max_tokens=3,
                arrival_time=0.0,
            )
        )
    return backlog, core


def run(backlog: Backlog, core: EngineCore, *, max_held: int) -> list[RequestOutput]:
    outputs: list[RequestOutput] = []
    while backlog.num_unfinished:
        assert core.num_unfinished <= max_held
        assert backlog.num_unfinished == len(NAMES) - len(outputs)
        outputs += backlog.step()
    backlog.close()
    return outputs


def test_a_core_holds_no_more_prompts_than_it_may_and_all_are_answered() -> None:
    backlog, core = make_backlog(max_held=2)

    assert (backlog.num_unfinished, core.num_unfinished) == (7, 2)
    assert all(name in backlog for name in NAMES)
    assert backlog.waiting() == NAMES
    outputs = run(backlog, core, max_held=2)

    assert [output.request_id for output in outputs] == NAMES
    assert all(output.outputs[0].finish_reason == "length" for output in outputs)
    assert not any(name in backlog for name in NAMES)


def test_with_room_for_all_nothing_is_kept_back() -> None:
    backlog, core = make_backlog(max_held=7)

    assert core.num_unfinished == 7
    assert len(run(backlog, core, max_held=7)) == 7


def test_what_is_kept_back_can_be_given_up() -> None:
    backlog, core = make_backlog(max_held=2)

    backlog.abort(["row 0", "row 3", "row 6", "no row"])
    outputs: list[RequestOutput] = []
    while backlog.num_unfinished:
        outputs += backlog.step()

    assert [output.request_id for output in outputs] == ["row 1", "row 2", "row 4", "row 5"]
    assert "row 3" not in backlog
    assert core.num_unfinished == 0
