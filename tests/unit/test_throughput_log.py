from __future__ import annotations

import logging
from typing import Any

import pytest

from furiosa_llm.outputs import StepStats
from furiosa_llm.throughput_log import ThroughputLog
from tests.factories import FakeClock


def make_step(**changes: Any) -> StepStats:
    names = StepStats.__dataclass_fields__
    return StepStats(**(dict.fromkeys(names, 0) | changes))


def test_a_line_tells_of_the_last_ten_seconds(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, logger="furiosa_llm.throughput_log")
    clock = FakeClock()
    log = ThroughputLog(clock)

    for _ in range(26):  # a step a second in each of two replicas
        steps = [
            make_step(
                replica=replica,
                num_prefill_tokens=30,
                num_cached_tokens=20,
                num_sampled_tokens=4,
                num_running=4 + replica,
                num_waiting=2,
                num_used_blocks=10,
                num_free_blocks=30,
            )
            for replica in (0, 1)
        ]
        log.note(steps, num_unfinished=13)
        clock.now += 1.0

    assert caplog.messages == [
        "prompts: 110.0 tokens/s, answers: 8.8 tokens/s, running: 9, waiting: 4, "
        "unfinished prompts: 13, KV cache: 25.0 %",
        "prompts: 100.0 tokens/s, answers: 8.0 tokens/s, running: 9, waiting: 4, "
        "unfinished prompts: 13, KV cache: 25.0 %",
    ]


def test_time_without_work_does_not_count(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, logger="furiosa_llm.throughput_log")
    clock = FakeClock()
    log = ThroughputLog(clock)

    log.note([make_step(num_sampled_tokens=5)], num_unfinished=0)
    clock.now += 60.0
    log.note([make_step(num_sampled_tokens=5)], num_unfinished=1)
    assert caplog.messages == []
    clock.now += 10.0
    log.note([make_step(num_sampled_tokens=5)], num_unfinished=1)

    [line] = caplog.messages
    assert "answers: 1.0 tokens/s" in line
