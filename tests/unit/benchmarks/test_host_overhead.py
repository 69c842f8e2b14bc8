from __future__ import annotations

from benchmarks.host_overhead import make_core, measure


def test_each_step_that_is_measured_has_a_token_of_every_request() -> None:
    assert len(measure(3, num_steps=5)) == 5


def test_steps_are_replayed_and_two_are_in_flight() -> None:
    core = make_core(3, num_steps=40)
    for _ in range(4):
        core.step()

    assert core.last_steps[0].num_decode_tokens == 3
    assert core.last_steps[0].num_steps_in_flight == 2
