"""The same call has the same name in every step of a loop, and calls after the loop go on from there."""

from bitwright.export.capture.numbering import Counts, counted, numbered
from bitwright.qcore.tracing import loop_steps


def steps(count):
    with loop_steps() as begin:
        for number in range(count):
            begin(number)
            yield number


def test_numbers_from_the_second_call_on():
    counts = Counts()
    assert [counted(counts, "act") for _ in range(3)] == ["act", "act.1", "act.2"]
    assert counted(counts, "other") == "other"
    assert counts == {"act": 3, "other": 1}
    assert numbered("act", 0) == "act"
    assert numbered("act", 12) == "act.12"


def test_steps_of_a_loop_count_once():
    counts = Counts()
    counted(counts, "hidden")  # the state to begin with
    for _ in steps(3):
        assert [counted(counts, "gate") for _ in range(2)] == ["gate", "gate.1"]
        assert counted(counts, "hidden") == "hidden.1"
    assert counted(counts, "hidden") == "hidden.2"
    for _ in steps(2):  # the other direction
        assert counted(counts, "hidden") == "hidden.3"
        assert counted(counts, "gate") == "gate.2"
    assert counts == {"hidden": 4, "gate": 3}


def test_loops_in_loops():
    counts = Counts()
    for _ in steps(2):
        assert counted(counts, "outer") == "outer"
        for _ in steps(3):
            assert counted(counts, "inner") == "inner"
        assert counted(counts, "outer") == "outer.1"
    assert counts == {"outer": 2, "inner": 1}


def test_a_body_that_is_traced_again_counts_once():
    counts = Counts()
    with loop_steps() as begin:
        for _ in range(3):
            begin(0)
            assert counted(counts, "act") == "act"
    assert counted(counts, "act") == "act.1"
