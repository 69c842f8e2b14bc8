from __future__ import annotations

import signal
import threading
from collections.abc import Iterator

import pytest

from furiosa_llm.interrupts import GracefulStop, HeldInterrupt
from tests.factories import FakeClock


@pytest.fixture
def calls() -> Iterator[list[int]]:
    """What a program's own handler of SIGINT was called with."""
    calls: list[int] = []
    previous = signal.signal(signal.SIGINT, lambda number, _: calls.append(number))
    yield calls
    signal.signal(signal.SIGINT, previous)


def press() -> None:
    signal.raise_signal(signal.SIGINT)


def test_an_interrupt_waits_until_it_is_delivered(calls: list[int]) -> None:
    with HeldInterrupt() as interrupt:
        press()
        assert calls == []
        interrupt.deliver()
        assert calls == [signal.SIGINT]
        interrupt.deliver()

    assert calls == [signal.SIGINT]


def test_leaving_delivers_what_is_held_and_puts_the_handler_back(calls: list[int]) -> None:
    with HeldInterrupt():
        press()

    assert len(calls) == 1
    press()
    assert len(calls) == 2


def test_a_second_interrupt_does_not_wait() -> None:
    def work() -> None:
        with HeldInterrupt():
            press()
            press()

    for interrupted in (work, press):  # the handler is put back
        with pytest.raises(KeyboardInterrupt):
            interrupted()


def test_an_error_is_not_hidden_by_a_held_interrupt() -> None:
    def work() -> None:
        with HeldInterrupt():
            press()
            raise RuntimeError("broken")

    with pytest.raises(RuntimeError, match="broken"):
        work()


def test_a_signal_that_is_ignored_stays_so() -> None:
    previous = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with HeldInterrupt() as interrupt:
            press()
            interrupt.deliver()
        assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, previous)


def test_another_thread_leaves_the_handler_alone(calls: list[int]) -> None:
    handlers = []

    def work() -> None:
        with HeldInterrupt() as interrupt:
            handlers.append(signal.getsignal(signal.SIGINT))
            interrupt.deliver()

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()

    assert handlers == [signal.getsignal(signal.SIGINT)]
    assert calls == []


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


def told(stop: GracefulStop) -> tuple[str | None, float]:
    return stop.reason, stop.seconds_left


def test_the_first_signal_asks_for_a_stop_and_the_second_one_is_not_held(
    calls: list[int], clock: FakeClock
) -> None:
    with GracefulStop(grace_seconds=30, clock=clock) as stop:
        assert stop.reason is None
        press()
        assert told(stop) == ("SIGINT", 30)
        assert calls == []
        clock.now = 40
        assert stop.seconds_left == 0
        press()
        assert calls == [signal.SIGINT]

    press()
    assert len(calls) == 2  # the handler is put back


def test_a_deadline_asks_for_a_stop_so_early_that_the_grace_time_is_in_it(
    clock: FakeClock,
) -> None:
    with GracefulStop(grace_seconds=30, deadline=100, clock=clock) as stop:
        clock.now = 69
        assert stop.reason is None
        clock.now = 70
        assert told(stop) == ("the deadline", 30)


def test_a_grace_time_never_goes_beyond_the_deadline(calls: list[int], clock: FakeClock) -> None:
    with GracefulStop(grace_seconds=30, deadline=100, clock=clock) as stop:
        clock.now = 60
        press()
        assert stop.seconds_left == 30
        clock.now = 65
        assert told(stop) == ("SIGINT", 25)

    assert calls == []


def test_a_signal_shortly_before_the_deadline_does_not_move_it(
    calls: list[int], clock: FakeClock
) -> None:
    with GracefulStop(grace_seconds=30, deadline=100, clock=clock) as stop:
        clock.now = 80  # a long step: no one has asked since the grace time began
        press()
        assert told(stop) == ("SIGINT", 20)
    assert calls == []


def test_a_stop_leaves_ignored_signals_alone() -> None:
    previous = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with GracefulStop(grace_seconds=1) as stop:
            signal.raise_signal(signal.SIGHUP)
            assert stop.reason is None
    finally:
        signal.signal(signal.SIGHUP, previous)
