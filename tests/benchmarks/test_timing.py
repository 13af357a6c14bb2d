"""Samples and summaries."""

import gc
import time

import pytest

from benchmarks.timing import Summary, Timed, summarize


class Clock:
    """Seconds that pass only when told."""

    def __init__(self, monkeypatch):
        self.now = 0.0
        self.calls = 0
        monkeypatch.setattr(time, "thread_time", lambda: self.now)

    def lasting(self, seconds):
        def call():
            self.now += seconds
            self.calls += 1

        return call


@pytest.fixture
def clock(monkeypatch):
    return Clock(monkeypatch)


def test_long_calls_run_once_a_sample(clock):
    timed = Timed(clock.lasting(0.25), shortest=0.005)
    assert timed.calls == 1
    assert timed() == 0.25


def test_short_calls_are_repeated(clock):
    timed = Timed(clock.lasting(0.001), shortest=0.016)
    clock.calls = 0
    assert timed() == pytest.approx(0.001)
    assert 16 <= clock.calls <= 32


def test_the_garbage_collector_rests_during_a_sample(clock):
    seen = []
    lasting = clock.lasting(1.0)
    timed = Timed(lambda: (lasting(), seen.append(gc.isenabled())))
    assert gc.isenabled()
    del seen[:]
    timed()
    assert seen == [False]
    assert gc.isenabled()
    gc.disable()
    try:
        timed()
        assert not gc.isenabled()
    finally:
        gc.enable()


def test_calls_that_take_no_time_come_to_an_end(clock):
    durations = iter([0.0] * 5)
    call = clock.lasting(1e-6)

    def faster_than_the_clock():
        if next(durations, None) is None:
            call()

    assert Timed(faster_than_the_clock, shortest=1e-4)() == pytest.approx(1e-6)


@pytest.mark.parametrize(
    ("numbers", "summary"),
    [
        ([3.0], Summary(3.0, 3.0, 3.0, 1)),
        ([2.0, 1.0], Summary(1.5, 1.25, 1.75, 2)),
        ([5.0, 1.0, 2.0, 4.0, 3.0], Summary(3.0, 2.0, 4.0, 5)),
        ([1.0, 1.0, 1.0, 99.0], Summary(1.0, 1.0, 25.5, 4)),
    ],
)
def test_summary_is_median_and_quartiles(numbers, summary):
    assert summarize(numbers) == summary
