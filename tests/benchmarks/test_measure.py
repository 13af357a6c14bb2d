"""Rounds: who takes part, in which order, and what is compared with what."""

import pytest

from benchmarks.measure import Effort, measure
from benchmarks.timing import Summary
from benchmarks.workload import Workload, WorkloadError, absolute, difference

FIVE = Effort(seconds=0.0, least=5, most=9)


class FakePlace:
    """Gives the numbers it is told, and remembers what it was asked."""

    def __init__(self, libraries, numbers, failures=()):
        self.libraries, self.numbers, self.failures = libraries, numbers, dict(failures)
        self.asked = []
        self.sampled = []

    def begin(self, workload, libraries):
        self.asked.append((workload, libraries))

    def prepared(self):
        return self.failures

    def sample(self, library):
        self.sampled.append(library)
        number = self.numbers[library]
        if isinstance(number, Exception):
            raise number
        return number

    def end(self):
        self.asked.append("end")


def workload(*libraries, **rest):
    return Workload("work", libraries, prepare=lambda library: lambda: 0.0, **rest)


def test_each_library_is_compared_with_float_of_its_own_process():
    here = FakePlace(("ours", "peer"), {"float": 2.0, "ours": 3.0, "peer": 5.0})
    there = FakePlace(("far",), {"float": 4.0, "far": 20.0})
    found = measure("key", workload("ours", "peer", "far"), [here, there], FIVE)
    medians = {library: summary.median for library, summary in found.compared.items()}
    assert medians == {"ours": 1.5, "peer": 2.5, "far": 5.0}
    assert found.base == Summary(2.0, 2.0, 2.0, 5)
    assert here.asked == [("key", ["ours", "peer"]), "end"]
    assert there.asked == [("key", ["far"]), "end"]


def test_every_round_asks_everyone_once_in_changing_order():
    place = FakePlace(("ours", "peer"), {"float": 1.0, "ours": 1.0, "peer": 1.0})
    measure("key", workload("ours", "peer"), [place], FIVE)
    rounds = [tuple(place.sampled[start : start + 3]) for start in range(0, 15, 3)]
    assert len(place.sampled) == 15
    assert all(sorted(each) == ["float", "ours", "peer"] for each in rounds)
    assert len(set(rounds)) > 1


def test_a_place_without_anyone_is_left_alone():
    place, idle = FakePlace(("ours",), {"float": 1.0, "ours": 1.0}), FakePlace(("far",), {})
    measure("key", workload("ours"), [place, idle], FIVE)
    assert idle.asked == []


def test_counts_are_taken_once():
    place = FakePlace(("ours",), {"float": 1.0, "ours": 3e6})
    counted = workload("ours", compare=absolute, unit="MB", scale=1e-6, repeats=False)
    found = measure("key", counted, [place], FIVE)
    assert found.compared["ours"] == Summary(3.0, 3.0, 3.0, 1)
    assert found.base == Summary(1e-6, 1e-6, 1e-6, 1)


def test_difference_is_what_comes_on_top():
    place = FakePlace(("ours",), {"float": 1.0, "ours": 1.25})
    found = measure("key", workload("ours", compare=difference, unit="s"), [place], FIVE)
    assert found.compared["ours"].median == 0.25


def test_failures_leave_the_others_running():
    numbers = {"float": 1.0, "ours": 2.0, "peer": WorkloadError("late")}
    place = FakePlace(("ours", "peer", "early"), numbers, {"early": "ImportError: none"})
    found = measure("key", workload("ours", "peer", "early"), [place], FIVE)
    assert found.failures == {"early": "ImportError: none", "peer": "late"}
    assert list(found.compared) == ["ours"]
    assert place.asked == [("key", ["ours", "peer", "early"]), "end"]


@pytest.mark.parametrize("numbers", [{"float": WorkloadError("no")}, {}])
def test_nothing_is_compared_where_float_fails(numbers):
    place = FakePlace(("ours",), {"ours": 2.0, **numbers}, {} if numbers else {"float": "no"})
    found = measure("key", workload("ours"), [place], FIVE)
    assert found.compared == {}
    assert found.base is None
    assert found.failures["ours"] == "no"


def test_rounds_fill_the_time_within_bounds():
    effort = Effort(seconds=1e9, least=2, most=4)
    place = FakePlace(("ours",), {"float": 1.0, "ours": 1.0})
    assert measure("key", workload("ours"), [place], effort).compared["ours"].rounds == 4
