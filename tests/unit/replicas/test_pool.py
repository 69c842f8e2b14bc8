"""A pool whose replicas are the other ends of their connections, in the hands of the test."""

from __future__ import annotations

import dataclasses
import multiprocessing
from collections.abc import Iterator
from multiprocessing.connection import Connection

import pytest

from furiosa_llm.engine_limits import CacheConfig, EngineLimits, ModelInfo
from furiosa_llm.errors import EngineError, NeverFitsError, PromptFailedError
from furiosa_llm.outputs import RequestMetrics, RequestOutput, StepStats
from furiosa_llm.replicas.launcher_process import LauncherProcess
from furiosa_llm.replicas.messages import Abort, Add, Report, Started
from furiosa_llm.replicas.pool import ReplicaPool
from furiosa_llm.request import TokenizedPrompt
from furiosa_llm.sampling_params import SamplingParams
from furiosa_llm.scheduler_config import SchedulerConfig

STEP = StepStats(**{field.name: 0 for field in dataclasses.fields(StepStats)})
STEP_TOKENS = 8
WAIT_SECONDS = 10
LIMITS = EngineLimits(
    scheduler_config=SchedulerConfig(
        is_offline=True, max_num_seqs=4, max_num_batched_tokens=STEP_TOKENS
    ),
    cache_config=CacheConfig(num_blocks=16, block_size=16, enable_prefix_caching=False),
    model_info=ModelInfo(max_model_len=256, vocab_size=100, eos_token_ids=frozenset()),
)


class FakeLauncher(LauncherProcess):
    """Starts nothing; replicas started after `is_deadly` is set are dead at once.

    Those started after `is_hasty` is set report before they are asked for anything.
    """

    def __init__(self, *nums_blocks: int) -> None:
        self.is_deadly = self.is_hasty = False
        self.num_starts = 0
        self.replica: Connection  # the end of the one that was started last
        self._nums_blocks = nums_blocks or (16,)

    def wait_until_ready(self) -> None:
        pass

    def start_replica(self, replica: int) -> Connection:
        self.num_starts += 1
        ours, self.replica = multiprocessing.Pipe()
        cache = dataclasses.replace(LIMITS.cache_config, num_blocks=self._nums_blocks[replica])
        self.replica.send(Started(dataclasses.replace(LIMITS, cache_config=cache)))
        if self.is_hasty:
            report(self.replica)
        if self.is_deadly:
            self.replica.close()
        return ours

    def reap(self, replica: int) -> str:  # noqa: ARG002 - there is one
        return "died of a test"

    def close(self) -> None:
        self.replica.close()


@pytest.fixture
def launcher() -> FakeLauncher:
    return FakeLauncher()


@pytest.fixture
def pool(launcher: FakeLauncher) -> Iterator[ReplicaPool]:
    pool = ReplicaPool(launcher, 1)
    yield pool
    pool.close()


def make_prompt(name: str, *, num_tokens: int = 3) -> TokenizedPrompt:
    return TokenizedPrompt(
        request_id=name,
        text=None,
        prompt_token_ids=[5] * num_tokens,
        sampling_params=SamplingParams(),
        max_tokens=4,
        arrival_time=0.0,
    )


def report(replica: Connection, *finished: TokenizedPrompt, num_received: int = 0) -> None:
    """Has the replica say that it has made a step and answered these prompts."""
    outputs = [
        RequestOutput(
            request_id=prompt.request_id,
            prompt=None,
            prompt_token_ids=[],
            outputs=[],
            finished=True,
            num_cached_tokens=0,
            num_output_tokens=0,
            metrics=RequestMetrics(),
        )
        for prompt in finished
    ]
    replica.send(
        Report(
            outputs=tuple(outputs), steps=(STEP,), num_received=num_received, num_waiting_tokens=0
        )
    )


def received(replica: Connection) -> Add | Abort:
    assert replica.poll(WAIT_SECONDS), "the replica is sent nothing"
    message: Add | Abort = replica.recv()
    return message


def taken(replica: Connection) -> TokenizedPrompt:
    """The one prompt that the replica is given next."""
    message = received(replica)
    assert isinstance(message, Add)
    (prompt,) = message.prompts
    return prompt


def test_what_comes_late_of_an_aborted_prompt_is_not_for_the_next_of_its_name(
    pool: ReplicaPool, launcher: FakeLauncher
) -> None:
    replica = launcher.replica
    pool.add(make_prompt("x", num_tokens=3))
    report(replica)
    pool.step()
    pool.abort(["x", "unknown"])
    pool.add(make_prompt("x", num_tokens=4))
    first = taken(replica)
    report(replica, first, num_received=1)
    late = pool.step()

    assert not late
    assert "x" in pool
    assert received(replica) == Abort((first.request_id,))
    second = taken(replica)
    report(replica, second, num_received=2)
    (output,) = pool.step()
    assert (output.request_id, output.num_prompt_tokens) == ("x", 4)
    assert "x" not in pool


def test_an_abort_of_a_queued_prompt_is_not_for_the_next_of_its_name(
    pool: ReplicaPool, launcher: FakeLauncher
) -> None:
    replica = launcher.replica
    pool.add(make_prompt("long", num_tokens=2 * STEP_TOKENS))
    pool.add(make_prompt("x", num_tokens=3))
    report(replica)
    pool.step()
    pool.abort(["x"])
    pool.add(make_prompt("x", num_tokens=4))
    waiting = pool.waiting()
    long = taken(replica)
    report(replica, long, num_received=1)
    pool.step()

    assert waiting == ["x"]
    assert pool.num_unfinished == 1
    assert taken(replica).num_prompt_tokens == 4


def test_a_prompt_that_is_given_up_has_its_callers_name(
    pool: ReplicaPool, launcher: FakeLauncher
) -> None:
    pool.add(make_prompt("before"))
    pool.abort(["before"])
    pool.add(make_prompt("x"))
    report(launcher.replica)
    pool.step()
    launcher.is_deadly = True
    launcher.replica.close()
    (output,) = pool.step()

    assert output.request_id == "x"
    assert isinstance(output.error, PromptFailedError)
    assert "x" not in pool


def test_the_limits_are_those_of_the_replica_that_holds_the_least() -> None:
    pool = ReplicaPool(FakeLauncher(8, 4), 2)

    with pytest.raises(NeverFitsError, match="the cache has 4"):
        pool.add(make_prompt("a", num_tokens=70))
    pool.close()


def test_a_replica_that_dies_five_times_for_nothing_is_not_started_again(
    pool: ReplicaPool, launcher: FakeLauncher
) -> None:
    launcher.is_deadly = True
    launcher.replica.close()
    pool.step()

    with pytest.raises(EngineError, match="every replica has died; the last one died of a test"):
        pool.step()

    assert launcher.num_starts == 5


def test_a_replica_that_answers_something_between_its_deaths_is_started_again(
    pool: ReplicaPool, launcher: FakeLauncher
) -> None:
    launcher.is_hasty = True
    report(launcher.replica)
    pool.step()
    for index in range(8):
        pool.add(make_prompt("x"))
        report(launcher.replica)
        pool.step()
        report(launcher.replica, taken(launcher.replica), num_received=1)
        assert [output.request_id for output in pool.step()] == ["x"], index
        launcher.replica.close()
        pool.step()

    assert launcher.num_starts == 9
